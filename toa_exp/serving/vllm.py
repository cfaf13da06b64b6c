"""vLLM's OpenAI-compatible servers: what each is started with, and on which GPUs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from toa_exp.engines.connection import Connection
from toa_exp.engines.seats import Seat
from toa_exp.engines.vllm_environment import cpu_environment
from toa_exp.engines.vllm_settings import Settings
from toa_exp.ensemble import Agent


def settings_of(agent: Agent, engine: Mapping[str, Any]) -> Settings:
    """An agent's settings, with `engine` the fields of engine=vllm. Raises BadInput for what cannot be.

    How another engine would reach the agent is left out.
    """
    reached = Connection.__dataclass_fields__
    options = {name: value for name, value in agent.options.items() if name not in reached}
    what = f"ensemble.agents.{agent.name}.options"
    return Settings.of(Settings.shared(engine), options, what, f"agent {agent.name!r}")


def command(
    agent: Agent, settings: Settings, seat: Seat | None, servers: int, host: str, port: int
) -> tuple[list[str], dict[str, str]]:
    """The command of a server and what it finds in the environment.

    `seat` is its place on the GPUs, None where there are none and the CPU is for `servers` of them.
    """
    arguments: dict[str, Any] = {
        **settings.engine_arguments(agent.model, agent.revision),
        "served_model_name": agent.model,
        "host": host,
        "port": port,
        "seed": 0,
        # Else the model's own top_k and penalties are applied, which no agent's identity has.
        "generation_config": "vllm",
    }
    if seat is None:
        arguments |= settings.cpu_arguments(agent.model, agent.revision, f"agent {agent.name!r}")
        given = {name: value for name, value in cpu_environment(servers).items() if name not in os.environ}
    else:
        arguments["gpu_memory_utilization"] = seat.share
        given = on_gpus(seat.gpus)
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in (arguments | settings.arguments).items():
        words += _argument(name.replace("_", "-"), value)
    return words, given


def on_gpus(gpus: Sequence[int]) -> dict[str, str]:
    """The environment of a process that sees these GPUs alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[gpu].strip() if names else str(gpu) for gpu in gpus)}


def _argument(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, Mapping):
        return [f"--{name}", json.dumps(dict(value))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
