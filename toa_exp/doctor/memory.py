"""Whether the models of a configuration fit into the memory that is free."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from toa_exp.doctor.findings import Findings
from toa_exp.doctor.machine import free_memory
from toa_exp.ensemble import Agent

_GIB = 2**30
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_ROOM = 0.8  # of the free memory: the rest is for the cache of keys and values, and for activations
_HEADER = struct.Struct("<Q")


def check_memory(findings: Findings, agents: Mapping[str, tuple[Agent, DictConfig]], reward: Any) -> None:
    """The weights of local models against the free memory of their devices.

    `agents` are those that run in this process, each with its engine's configuration, and `reward`
    is the configuration of a reward with a model, or None.
    """
    wanted: dict[str, dict[tuple[str, str], tuple[str, int]]] = {}  # by device, then by model
    for name, (agent, engine) in agents.items():
        dtype = str(agent.options.get("dtype", engine.get("dtype", "auto")))
        _want(
            findings,
            wanted,
            f"agent {name!r}",
            agent.model,
            agent.revision,
            str(engine.get("device", "auto")),
            dtype,
        )
    if reward is not None:
        dtype, device = str(reward.get("dtype", "auto")), str(reward.get("device", "auto"))
        _want(findings, wanted, "reward", str(reward.get("model")), reward.get("revision"), device, dtype)
    for device, models in wanted.items():
        place, free = free_memory(device)
        sizes = [f"{whose} {size / _GIB:.2f}" for whose, size in models.values()]
        total = sum(size for _, size in models.values())
        said = (
            f"{total / _GIB:.2f} GiB of weights ({', '.join(sizes)}), {free / _GIB:.1f} GiB free on {place}"
        )
        if total > free:
            findings.fail(
                "memory",
                f"{said}: they do not fit. Leave out an agent, set dtype=bfloat16, take smaller models, "
                f"or serve some elsewhere and use engine=openai",
            )
        elif total > _ROOM * free:
            findings.warn(
                "memory",
                f"{said}: little is left for the caches. Lower engine.max_batch_tokens, or free memory",
            )
        else:
            findings.ok("memory", said)


def _want(
    findings: Findings,
    wanted: dict[str, dict[tuple[str, str], tuple[str, int]]],
    whose: str,
    model: str,
    revision: str | None,
    device: str,
    dtype: str,
) -> None:
    parameters, stored = _parameters(model, revision)
    if not parameters:
        findings.warn(
            "memory",
            f"{whose}: how large {model!r} is could not be found out; see that it is a folder with "
            f"safetensors files, or that the hub is reachable",
        )
        return
    if dtype == "auto":
        dtype = "float32" if free_memory(device)[0] == "the CPU" else stored
    size = parameters * _BYTES.get(dtype, 4)
    wanted.setdefault(device, {})[model, str(revision)] = whose, size


def _parameters(model: str, revision: str | None) -> tuple[int, str]:
    """Number and format of a model's weights, from its files alone; 0 where it is not known."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        headers = [_header(path) for path in sorted(folder.glob("*.safetensors"))]
        tensors = [tensor for header in headers for name, tensor in header.items() if name != "__metadata__"]
        count = sum(prod(tensor["shape"]) for tensor in tensors)
        return count, {"BF16": "bfloat16", "F16": "float16"}.get(
            tensors[0]["dtype"] if tensors else "", "float32"
        )
    from huggingface_hub import get_safetensors_metadata

    try:
        counts = get_safetensors_metadata(model, revision=revision).parameter_count
    except Exception:  # no connection, no such model, no safetensors: the hub's errors have no root
        return 0, "float32"
    largest = max(counts, key=lambda name: counts[name])
    return sum(counts.values()), {"BF16": "bfloat16", "F16": "float16"}.get(largest, "float32")


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its tensors' shapes; empty where it is none."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER.unpack(file.read(_HEADER.size))[0]))
    except (OSError, ValueError, struct.error, OverflowError, MemoryError):
        return {}
    return header if isinstance(header, dict) else {}
