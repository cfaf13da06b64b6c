"""Whether the models of a configuration fit into the memory that is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from toa_exp.doctor.findings import Findings
from toa_exp.engines import residents
from toa_exp.engines.base import Engine
from toa_exp.engines.seats import GIB, Plan
from toa_exp.engines.sizes import free_memory
from toa_exp.engines.turns import check_residents
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput
from toa_exp.job import share_gpus
from toa_exp.rewards.base import Reward

_TRANSFORMERS = "toa_exp.engines.transformers.Transformers"


@dataclass(frozen=True, slots=True)
class Weights:
    """A model that is to be loaded, and where.

    It takes turns with those of the same `engine`, of which `residents` are in memory at once, None for as
    many as fit; without an engine it stays.
    """

    what: residents.Weights
    device: str
    engine: str | None = None
    residents: int | None = None

    @classmethod
    def of_agent(cls, agent: Agent, engine: DictConfig) -> Weights:
        """Those of an agent that runs in this process."""
        dtype = str(agent.options.get("dtype", engine.get("dtype", "auto")))
        given = check_residents(engine.get("residents", "auto"))
        weighs = engine.get("_target_") == _TRANSFORMERS  # vLLM on a CPU has all of them awake
        turns = None if given is None and not weighs else agent.engine or "engine"
        what = residents.Weights.of_agent(agent, dtype)
        return cls(what, str(engine.get("device", "auto")), turns, given)

    @classmethod
    def of_reward(cls, reward: DictConfig) -> Weights:
        """Those of a reward with a model."""
        model, dtype = str(reward.get("model")), str(reward.get("dtype", "auto"))
        what = residents.Weights("reward", model, reward.get("revision"), dtype)
        return cls(what, str(reward.get("device", "auto")))


def check_memory(findings: Findings, models: Sequence[Weights]) -> None:
    """Weights against the free memory of their devices; a model that several have counts once."""
    devices: dict[str, dict[tuple[str, ...], tuple[Weights, int]]] = {}
    for one in models:
        try:
            size = one.what.size(free_memory(one.device)[0])
        except BadInput as error:
            findings.warn("memory", f"how much {one.what.whose} takes is not known: {error}")
        else:
            key = (one.what.model, str(one.what.revision), one.what.dtype)
            devices.setdefault(one.device, {}).setdefault(key, (one, size))
    for device, sizes in devices.items():
        _weigh(findings, device, list(sizes.values()))


def _weigh(findings: Findings, device: str, sizes: Sequence[tuple[Weights, int]]) -> None:
    place, free = free_memory(device)
    total = sum(size for one, size in sizes if one.engine is None)
    turns = ""
    for engine in dict.fromkeys(one.engine for one, _ in sizes if one.engine is not None):
        weights = sorted((size for one, size in sizes if one.engine == engine), reverse=True)
        given = next(one.residents for one, _ in sizes if one.engine == engine)
        awake = given or max(1, residents.fitting(weights, free))
        total += sum(weights[:awake])
        if awake < len(weights):
            turns += f"; {awake} of {len(weights)} agents at a time"
    each = ", ".join(f"{one.what.whose} {size / GIB:.2f}" for one, size in sizes)
    said = f"{total / GIB:.2f} GiB of weights ({each}{turns}), {free / GIB:.1f} GiB free on {place}"
    if total > free:
        findings.fail(
            "memory",
            f"{said}: they do not fit. Load fewer at a time (engine.residents=1), leave out an agent, set "
            f"dtype=bfloat16, take smaller models, or serve some elsewhere and use engine=openai",
        )
    elif total > residents.ROOM * free:
        findings.warn(
            "memory",
            f"{said}: little is left for the caches. Lower engine.max_batch_tokens or engine.residents, or "
            f"free memory",
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
