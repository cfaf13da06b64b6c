"""Whether the models of a configuration fit into the memory that is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from toa_exp.doctor.findings import Findings
from toa_exp.doctor.machine import CPU, free_memory
from toa_exp.engines.base import Engine
from toa_exp.engines.packing import GIB, Plan
from toa_exp.engines.sizes import weights_of
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput
from toa_exp.job import share_gpus
from toa_exp.rewards.base import Reward

_ROOM = 0.8  # of the free memory: the rest is for the cache of keys and values, and for activations


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
        """Bytes. Raises BadInput where they cannot be found out."""
        dtype = self.dtype
        if dtype == "auto" and free_memory(self.device)[0] == CPU:
            dtype = "float32"
        return weights_of(self.model, self.revision, self.whose, dtype=dtype)


def check_memory(findings: Findings, models: Sequence[Weights]) -> None:
    """Weights against the free memory of their devices; a model that several have counts once."""
    devices: dict[str, dict[tuple[str, ...], tuple[str, int]]] = {}
    for one in models:
        try:
            size = one.size()
        except BadInput as error:
            findings.warn("memory", f"how much {one.whose} takes is not known: {error}")
        else:
            key = (one.model, str(one.revision), one.dtype)
            devices.setdefault(one.device, {}).setdefault(key, (one.whose, size))
    for device, sizes in devices.items():
        _weigh(findings, device, list(sizes.values()))


def _weigh(findings: Findings, device: str, sizes: Sequence[tuple[str, int]]) -> None:
    place, free = free_memory(device)
    total = sum(size for _, size in sizes)
    each = ", ".join(f"{whose} {size / GIB:.2f}" for whose, size in sizes)
    said = f"{total / GIB:.2f} GiB of weights ({each}), {free / GIB:.1f} GiB free on {place}"
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


def check_plan(findings: Findings, parts: Sequence[Engine | Reward]) -> Plan | None:
    """The plan for the GPUs that a run of these engines and rewards makes; None where it makes none.

    Raises BadInput where they do not fit.
    """
    ground = share_gpus(parts)
    plan = None if ground is None else ground.plan()
    if plan is not None:
        findings.ok("memory", "; ".join(" ".join(line.split()) for line in plan.table().splitlines()))
    return plan
