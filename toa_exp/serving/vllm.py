"""The command line of vLLM's OpenAI-compatible server for an agent."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose

# Fields of the engine and options of an agent that are arguments of the server, by the same name.
_ARGUMENTS = [
    "dtype",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "quantization",
    "kv_cache_dtype",
    "swap_space",
    "chat_template",
]
# What an agent of another engine may have: it says how to reach or place it.
_ELSEWHERE = ["gpus", "base_url", "key_env", "omit", "token_limit", "timeout", "connect_timeout", "server"]


def vllm_command(
    agent: Agent, settings: Mapping[str, Any], host: str, port: int
) -> tuple[list[str], dict[str, str]]:
    """The command, and what it needs in its environment.

    `settings` are the fields of engine=vllm, which the agent's options override; those that the
    server does not have are left out. An agent's `options.server` holds further arguments of the
    server by name. `gpus`, a list of indices, is what the server sees of the GPUs. Raises BadInput
    for an option that is none of these.
    """
    for name in agent.options:
        if name not in [*_ARGUMENTS, *_ELSEWHERE]:
            raise choose(
                f"option of agent {agent.name!r} for a vLLM server:", name, [*_ARGUMENTS, "gpus", "server"]
            )
    further = agent.options.get("server") or {}
    if not isinstance(further, Mapping):
        raise BadInput(f"agent {agent.name!r}: options.server={further!r} is no mapping of vLLM's arguments")
    shared = {name: settings[name] for name in _ARGUMENTS if name in settings}
    own = {name: agent.options[name] for name in _ARGUMENTS if name in agent.options}
    arguments: dict[str, Any] = {
        "model": agent.model,
        "served_model_name": agent.model,
        "revision": agent.revision,
        "host": host,
        "port": port,
        "seed": 0,
        # Else the model's own top_k and penalties are applied, which no agent's identity has.
        "generation_config": "vllm",
        **shared,
        **own,
        **further,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in arguments.items():
        command += _argument(name.replace("_", "-"), value)
    return command, _environment(agent)


def _argument(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(dict(value))]
    return [f"--{name}", str(value)]


def _environment(agent: Agent) -> dict[str, str]:
    gpus = agent.options.get("gpus")
    if gpus is None or gpus == "auto":
        return {}
    indices = gpus if isinstance(gpus, list) else [gpus]
    if not all(isinstance(index, int) and index >= 0 for index in indices):
        raise BadInput(
            f"agent {agent.name!r}: options.gpus={gpus!r}; give the indices of its GPUs, as [0, 1]"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, indices))}
