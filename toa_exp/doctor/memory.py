"""Whether the models of a configuration fit into the memory that is free."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from toa_exp.doctor.findings import Findings
from toa_exp.doctor.machine import free_memory
from toa_exp.ensemble import Agent

_GIB = 2**30
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"BF16": "bfloat16", "F16": "float16"}  # as safetensors names them
_ROOM = 0.8  # of the free memory: the rest is for the cache of keys and values, and for activations
_HEADER = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model that is to be loaded: whose it is, and where and in which number format it runs."""

    whose: str
    model: str
    revision: str | None
    device: str
    dtype: str

    @classmethod
    def of_agent(cls, agent: Agent, engine: DictConfig) -> Weights:
        """Those of an agent that runs in this process."""
        dtype = str(agent.options.get("dtype", engine.get("dtype", "auto")))
        device = str(engine.get("device", "auto"))
        return cls(f"agent {agent.name!r}", agent.model, agent.revision, device, dtype)

    @classmethod
    def of_reward(cls, reward: DictConfig) -> Weights:
        """Those of a reward with a model."""
        device, dtype = str(reward.get("device", "auto")), str(reward.get("dtype", "auto"))
        return cls("reward", str(reward.get("model")), reward.get("revision"), device, dtype)

    def size(self) -> int:
        """Bytes; 0 where they cannot be found out."""
        parameters, stored = _parameters(self.model, self.revision)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if free_memory(self.device)[0] == "the CPU" else stored
        return parameters * _BYTES.get(dtype, 4)


def check_memory(findings: Findings, models: Sequence[Weights]) -> None:
    """Weights against the free memory of their devices; a model that several have counts once."""
    devices: dict[str, dict[tuple[str, ...], tuple[str, int]]] = {}
    for one in models:
        size = one.size()
        if size:
            key = (one.model, str(one.revision), one.dtype)
            devices.setdefault(one.device, {}).setdefault(key, (one.whose, size))
        else:
            findings.warn(
                "memory",
                f"{one.whose}: how large {one.model!r} is could not be found out; see that it is a folder "
                f"with safetensors files, or that the hub is reachable",
            )
    for device, sizes in devices.items():
        _weigh(findings, device, list(sizes.values()))


def _weigh(findings: Findings, device: str, sizes: Sequence[tuple[str, int]]) -> None:
    place, free = free_memory(device)
    total = sum(size for _, size in sizes)
    each = ", ".join(f"{whose} {size / _GIB:.2f}" for whose, size in sizes)
    said = f"{total / _GIB:.2f} GiB of weights ({each}), {free / _GIB:.1f} GiB free on {place}"
    if total > free:
        findings.fail(
            "memory",
            f"{said}: they do not fit. Leave out an agent, set dtype=bfloat16, take smaller models, or "
            f"serve some elsewhere and use engine=openai",
        )
    elif total > _ROOM * free:
        findings.warn(
            "memory", f"{said}: little is left for the caches. Lower engine.max_batch_tokens, or free memory"
        )
    else:
        findings.ok("memory", said)


def check_plan(findings: Findings, parts: Sequence[Any]) -> bool:
    """The placement on GPUs of engines and rewards that plan one (their `ground`); False where none does."""
    planner = next((part for part in parts if hasattr(part, "ground")), None)
    if planner is None:
        return False
    with findings.checking("memory"):
        for part in parts:
            if part is not planner and hasattr(part, "join"):
                part.join(planner.ground)
        plan = planner.ground.plan()
        if plan is None:
            return False
        findings.ok("memory", "; ".join(" ".join(line.split()) for line in plan.table().splitlines()))
    return True


def _parameters(model: str, revision: str | None) -> tuple[int, str]:
    """Number and format of a model's weights, from its files alone; 0 where it is not known."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        headers = [_header(path) for path in sorted(folder.glob("*.safetensors"))]
        tensors = [tensor for header in headers for name, tensor in header.items() if name != "__metadata__"]
        count = sum(prod(tensor["shape"]) for tensor in tensors)
        return count, _STORED.get(tensors[0]["dtype"] if tensors else "", "float32")
    from huggingface_hub import get_safetensors_metadata

    try:
        counts = get_safetensors_metadata(model, revision=revision).parameter_count
    except Exception:  # no connection, no such model, no safetensors: the hub's errors have no root
        return 0, "float32"
    largest = max(counts, key=lambda name: counts[name])
    return sum(counts.values()), _STORED.get(largest, "float32")


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its tensors' shapes; empty where it is none."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER.unpack(file.read(_HEADER.size))[0]))
    except (OSError, ValueError, struct.error, OverflowError, MemoryError):
        return {}
    return header if isinstance(header, dict) else {}
