"""Whether the models of a configuration fit into the memory that is free."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_exp.build import is_kind
from toa_exp.doctor.findings import Findings
from toa_exp.engines import residents
from toa_exp.engines.base import Engine
from toa_exp.engines.residents import Weights
from toa_exp.engines.seats import GIB, Plan, gib
from toa_exp.engines.sizes import free_memory
from toa_exp.engines.transformers import Transformers
from toa_exp.engines.turns import check_residents
from toa_exp.engines.vllm import Vllm
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput
from toa_exp.job import share_gpus
from toa_exp.rewards.base import Reward
from toa_exp.rewards.judge import Judge
from toa_exp.rewards.model import ModelReward
from toa_exp.rewards.vllm_classifier import VllmClassifier


@dataclass(frozen=True, slots=True)
class Load:
    """A model that is to be loaded, and where.

    It takes turns with those of the same `engine`, of which `residents` are in memory at once, None for as
    many as fit; without an engine it stays. `seat` is the name of a reward's, which shares its model with
    nobody.
    """

    what: Weights
    device: str
    engine: str | None = None
    residents: int | None = None
    seat: str | None = None

    @classmethod
    def of_agent(cls, agent: Agent, engine: Mapping[str, Any]) -> Load:
        """That of an agent that runs in this process."""
        dtype = str(agent.options.get("dtype", engine.get("dtype", "auto")))
        given = check_residents(engine.get("residents", "auto"))
        weighs = is_kind(engine, Transformers)  # vLLM on a CPU has all of them awake
        turns = None if given is None and not weighs else agent.engine or "engine"
        what = Weights.of_agent(agent, dtype)
        return cls(what, str(engine.get("device", "auto")), turns, given)

    @classmethod
    def of_reward(cls, reward: Mapping[str, Any]) -> list[Load]:
        """Those of a reward that runs a model in this process, or of the members of one."""
        loads = []
        for seat, part in members_of(reward).items():
            runs = what_runs(part)
            if is_kind(runs, ModelReward, VllmClassifier, Transformers, Vllm) and part.get("model"):
                own = part.get("options") or {}  # of a judge's model
                dtype = str(own.get("dtype", runs.get("dtype", "auto")))
                what = Weights(seat, str(part["model"]), part.get("revision"), dtype)
                loads.append(cls(what, str(runs.get("device", "auto")), seat=seat))
        return loads


def what_runs(reward: Mapping[str, Any]) -> Any:
    """What says where and how a reward's model runs: a judge's engine, else the reward."""
    return reward.get("engine") if is_kind(reward, Judge) else reward


def members_of(reward: Any, seat: str = "reward") -> dict[str, Mapping[str, Any]]:
    """A reward, or the members of one, by the seat; without those that are none, which no run builds."""
    if not isinstance(reward, Mapping):
        return {}
    members = reward.get("members")
    if not isinstance(members, Mapping):
        return {seat: reward}
    found = [members_of(member, f"{seat}.members.{name}") for name, member in members.items()]
    return dict(itertools.chain.from_iterable(part.items() for part in found))


def check_memory(findings: Findings, models: Sequence[Load]) -> None:
    """Weights against the free memory of their devices; a model that several agents have counts once."""
    devices: dict[str, dict[tuple[str, ...], tuple[Load, int]]] = {}
    for one in models:
        try:
            size = one.what.size(free_memory(one.device)[0])
        except BadInput as error:
            findings.warn("memory", f"how much {one.what.whose} takes is not known: {error}")
        else:
            key = (one.what.model, str(one.what.revision), one.what.dtype, str(one.seat))
            devices.setdefault(one.device, {}).setdefault(key, (one, size))
    for device, sizes in devices.items():
        _weigh(findings, device, list(sizes.values()))


def _weigh(findings: Findings, device: str, sizes: Sequence[tuple[Load, int]]) -> None:
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
    each = ", ".join(f"{one.what.whose} {gib(size)}" for one, size in sizes)
    said = f"{gib(total)} GiB of weights ({each}{turns}), {free / GIB:.1f} GiB free on {place}"
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
