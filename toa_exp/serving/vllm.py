"""vLLM's OpenAI-compatible servers: what each is started with, and on which GPUs."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_exp.build import call
from toa_exp.ensemble import Agent, model_config
from toa_exp.errors import BadInput, choose

# Settings of engine=vllm and options of its agents that a server is started with.
SETTINGS = [
    "dtype",
    "quantization",
    "max_model_len",
    "tensor_parallel_size",
    "max_num_seqs",
    "prefix_caching",
    "arguments",
    "gpu_memory_utilization",
    "gpus",
]
# Options of other engines, which say how an agent is reached.
_ELSEWHERE = ["base_url", "key_env", "omit", "token_limit", "timeout", "connect_timeout"]
_PREFILL = 32768  # tokens read at once on a CPU at most, or a whole prompt where that is more
_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is served; the fields are those of engine=vllm.

    `gpu_memory_utilization` is the fraction of each of its GPUs that the server gets, None for an
    equal part beside the others there; `gpus` are the indices of those that it may use, None for all.
    """

    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    max_num_seqs: int | None = None
    prefix_caching: bool = True
    arguments: Mapping[str, Any] | None = None
    gpu_memory_utilization: float | None = None
    gpus: Sequence[int] | None = None

    @classmethod
    def of(cls, agent: Agent, shared: Mapping[str, Any]) -> Settings:
        """An agent's settings: `shared`, overridden by its options. Raises BadInput for others."""
        whose = f"agent {agent.name!r}"
        for name in agent.options:
            if name not in [*SETTINGS, *_ELSEWHERE]:
                raise choose(f"option of {whose} for a vLLM server:", name, SETTINGS)
        own = {name: agent.options[name] for name in SETTINGS if name in agent.options}
        arguments = {**(shared.get("arguments") or {}), **(own.get("arguments") or {})}
        made = call(cls, {**shared, **own, "arguments": arguments}, f"options of {whose}")
        if made.gpus is not None and not all(type(gpu) is int and gpu >= 0 for gpu in made.gpus):
            raise BadInput(f"{whose}: options.gpus={made.gpus!r}; give the indices of its GPUs, as [0, 1]")
        return made


def shared_settings(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of engine=vllm that hold for every agent; the whole of a GPU is shared out in `place`."""
    own = {"gpu_memory_utilization", "gpus"}
    return {name: engine[name] for name in SETTINGS if name in engine and name not in own}


@dataclass(frozen=True, slots=True)
class Share:
    """GPUs of a server, and the fraction of each that it gets."""

    gpus: tuple[int, ...]
    utilization: float


def place(wanted: Mapping[str, Settings], gpus: Sequence[int], utilization: float) -> dict[str, Share]:
    """Where each server goes: on the GPUs with the fewest others, in equal parts of `utilization`.

    Raises BadInput where one wants more GPUs than it may have.
    """
    taken: Counter[int] = Counter()
    chosen: dict[str, tuple[int, ...]] = {}
    for name, settings in wanted.items():
        allowed = [gpu for gpu in (gpus if settings.gpus is None else settings.gpus) if gpu in gpus]
        if len(allowed) < settings.tensor_parallel_size:
            raise BadInput(
                f"agent {name!r}: tensor_parallel_size={settings.tensor_parallel_size}, and it may use GPUs "
                f"{allowed} of {list(gpus)}; lower it, or give other gpus"
            )
        order = sorted(allowed, key=lambda gpu: (taken[gpu], gpu))
        chosen[name] = tuple(sorted(order[: settings.tensor_parallel_size]))
        taken.update(chosen[name])
    return {
        name: Share(
            members,
            wanted[name].gpu_memory_utilization or utilization / max(taken[gpu] for gpu in members),
        )
        for name, members in chosen.items()
    }


def command(
    agent: Agent, settings: Settings, share: Share | None, host: str, port: int
) -> tuple[list[str], dict[str, str]]:
    """The command of a server and what it needs in its environment; `share` None is for the CPU."""
    arguments: dict[str, Any] = {
        "model": agent.model,
        "served_model_name": agent.model,
        "revision": agent.revision,
        "tokenizer_revision": agent.revision,
        "host": host,
        "port": port,
        "seed": 0,
        # Else the model's own top_k and penalties are applied, which no agent's identity has.
        "generation_config": "vllm",
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": settings.prefix_caching,
        **(_on_cpu(agent, settings) if share is None else _on_gpus(settings, share)),
        **(settings.arguments or {}),
    }
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in arguments.items():
        words += _argument(name.replace("_", "-"), value)
    if share is None:
        return words, {name: value for name, value in _CPU.items() if name not in os.environ}
    return words, {"CUDA_VISIBLE_DEVICES": ",".join(map(_device, share.gpus))}


def _device(gpu: int) -> str:
    """What CUDA calls a GPU that is the `gpu`-th of those that are visible here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(gpu) if not visible else visible.split(",")[gpu].strip()


def _on_gpus(settings: Settings, share: Share) -> dict[str, Any]:
    return {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": round(share.utilization, 4),
    }


def _on_cpu(agent: Agent, settings: Settings) -> dict[str, Any]:
    """Without chunked prefill: a seeded request that is read in chunks ends vLLM's engine on a CPU."""
    config = model_config(agent.model, agent.revision, f"agent {agent.name!r}")
    window = {**config, **config.get("text_config", {})}.get("max_position_embeddings") or 0
    return {
        "dtype": "float32" if settings.dtype == "auto" else settings.dtype,
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(settings.max_model_len or window, _PREFILL),
    }


def _argument(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(dict(value))]
    return [f"--{name}", str(value)]
