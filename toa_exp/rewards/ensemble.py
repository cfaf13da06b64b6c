"""Several rewards as one: their mean, their minimum, or the mean of their standardised scores."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

from omegaconf import OmegaConf

from toa_exp.aio import gather_all
from toa_exp.build import build
from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.draws import Score, canonical, digest, encode
from toa_exp.engines.gpus import Ground
from toa_exp.errors import BadInput, choose, told_at
from toa_exp.rewards.base import Range, Reward
from toa_exp.rewards.warmup import Pair, pairs
from toa_exp.tasks.base import Task

log = logging.getLogger(__name__)
RULES = ["mean", "minimum", "standardised_mean"]
_ALIKE = 3.0  # times: how far the widths of ranges may differ before a plain mean is one of few members

ScoreOf = Callable[[Problem, str], Awaitable[Score]]


class Ensemble:
    """The scores of `members`, by name and as their YAMLs describe them, combined by `rule`.

    standardised_mean is the mean of (score - mean) / sd. `moments` states mean and sd of each member;
    None estimates them before the first score, from a right and a wrong answer to each of the task's
    first `calibration` problems (`rewards.warmup.pairs`). These texts are fixed by the task, and sums are
    exact, so that scores depend neither on the order of answers nor on concurrency. FLOPs are the
    members' for the mean number of tokens they read.
    """

    def __init__(
        self,
        *,
        members: Mapping[str, Mapping[str, Any]],
        task: Task,
        rule: str = "mean",
        moments: Mapping[str, Mapping[str, float]] | None = None,
        calibration: int = 16,
    ) -> None:
        if rule not in RULES:
            raise choose("reward.rule", rule, RULES)
        if not members:
            raise BadInput("reward.members is empty; add some: +reward@reward.members.<name>=<choice>")
        self.members: dict[str, Reward] = {}
        for name, node in sorted(members.items()):
            with told_at("reward", f"reward.members.{name}"):
                member = build(OmegaConf.create(dict(node)), f"reward.members.{name}", task=task)
            self.members[name] = member
        self.warms_up = all(getattr(member, "warms_up", True) for member in self.members.values())
        self.ground: Ground | None = None
        if sum(hasattr(member, "join") for member in self.members.values()) > 1:
            self.join(Ground())  # which is the agents' where these are placed too
        self._rule = rule
        self._standardised = rule == "standardised_mean"
        self._moments: dict[str, tuple[float, float]] | None = None
        self._pairs: list[Pair] = []
        self._turn = asyncio.Lock()
        if not self._standardised:
            self._moments = dict.fromkeys(self.members, (0.0, 1.0))
        elif moments is not None:
            self._moments = _stated(moments, self.members)
        else:
            self._pairs = list(islice(pairs(task), calibration)) if self.warms_up else []
            if len(self._pairs) < 2:
                raise BadInput(
                    "reward.rule=standardised_mean: the task has no references that all members read, to "
                    "estimate their mean and sd from; give reward.moments={<name>: {mean: <number>, sd: "
                    "<number>}, ...}"
                )
        self.shape = _together([member.shape for member in self.members.values()])
        self.range = self._range()

    def join(self, ground: Ground, seat: str = "reward") -> None:
        """Place the members together, and with the agents, each under a name of its own."""
        self.ground = ground
        for name, member in self.members.items():
            if hasattr(member, "join"):
                member.join(ground, f"{seat}.members.{name}")

    def fingerprint(self) -> Mapping[str, Any]:
        """The rule and the members; where these are standardised, by what."""
        parts = []
        for name, member in self.members.items():
            part: dict[str, Any] = {"by": dict(member.fingerprint())}
            if self._standardised:
                part["moments"] = self._texts() if self._pairs else list((self._moments or {})[name])
            parts.append(part)
        ordered = [json.loads(text) for text in sorted(canonical(part) for part in parts)]
        return {"reward": "ensemble", "rule": self._rule, "members": ordered}

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text, where nobody keeps those of the members; see `combine`."""
        members = {name: member.score for name, member in self.members.items()}
        await self.calibrate(members)
        scores = await gather_all([_one(score, problem, text) for score in members.values()])
        return self.combine(dict(zip(members, scores, strict=True)))

    async def calibrate(self, score: Mapping[str, ScoreOf]) -> None:
        """Estimate mean and sd where that is to be done; `score` gives the scores of each member."""
        if self._moments is not None:
            return
        async with self._turn:
            if self._moments is not None:
                return
            texts = [(problem, text) for problem, *answers in self._pairs for text in answers]
            found = {}
            for name, of in score.items():
                scores = await gather_all([_one(of, problem, text) for problem, text in texts])
                found[name] = _moments(name, [each.reward for each in scores])
            self._moments = found
            log.info("members are standardised by mean and sd: %s", found)

    def combine(self, scores: Mapping[str, Score]) -> Score:
        """The score that the members' scores of one text give."""
        moments = self._moments
        assert moments is not None  # `calibrate` was awaited
        values = [(s.reward - moments[name][0]) / moments[name][1] for name, s in scores.items()]
        reward = min(values) if self._rule == "minimum" else math.fsum(values) / len(values)
        read = [s.tokens for name, s in scores.items() if self.members[name].shape is not None]
        tokens = round(sum(read) / len(read)) if read else 0
        return Score(reward, tokens, math.fsum(s.seconds for s in scores.values()))

    async def close(self) -> None:
        """Close every member, also where another one fails to."""
        async with AsyncExitStack() as held:
            for member in self.members.values():
                held.push_async_callback(member.close)

    def _texts(self) -> str:
        """A digest of what the moments are estimated from."""
        parts = [encode(part) for problem, *answers in self._pairs for part in (problem.id, *answers)]
        return digest(*parts).hex()

    def _range(self) -> Range | None:
        if self._standardised:
            return Range(-3.0, 3.0)
        known = [found for m in self.members.values() if (found := getattr(m, "range", None)) is not None]
        widths = [found.high - found.low for found in known]
        if widths and max(widths) > _ALIKE * min(widths):
            log.warning(
                "reward.rule=%s: the members' ranges differ (%s), so that some hardly count; "
                "reward.rule=standardised_mean makes them alike",
                self._rule,
                ", ".join(f"{found.low:g} to {found.high:g}" for found in known),
            )
        if len(known) < len(self.members):
            return None
        if self._rule == "minimum":
            return Range(min(found.low for found in known), min(found.high for found in known))
        return Range(sum(f.low for f in known) / len(known), sum(f.high for f in known) / len(known))


async def _one(score: ScoreOf, problem: Problem, text: str) -> Score:
    return await score(problem, text)


def _stated(moments: Mapping[str, Mapping[str, float]], members: Mapping[str, Reward]) -> dict[str, Any]:
    if set(moments) != set(members) or any(set(each) != {"mean", "sd"} for each in moments.values()):
        raise BadInput(
            f"reward.moments={dict(moments)}: give mean and sd of each member, which are {', '.join(members)}"
        )
    for name, each in moments.items():
        if not each["sd"] > 0:
            raise BadInput(f"reward.moments.{name}.sd={each['sd']} must be above 0")
    return {name: (float(each["mean"]), float(each["sd"])) for name, each in moments.items()}


def _moments(name: str, rewards: Sequence[float]) -> tuple[float, float]:
    """Mean and sd; exact sums, so that the order does not show."""
    mean = math.fsum(rewards) / len(rewards)
    variance = math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards)
    if variance <= 0.0:
        raise BadInput(
            f"reward.members.{name} gives all answers of the warm-up {mean:g}, so that its scores cannot be "
            f"standardised; leave it out, or give reward.moments"
        )
    return mean, math.sqrt(variance)


def _together(shapes: Sequence[Architecture | None]) -> Architecture | None:
    """An architecture whose FLOPs are those of all."""
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return None
    return Architecture(
        matrices=sum(shape.matrices for shape in known),
        head=sum(shape.head for shape in known),
        embedding=sum(shape.embedding for shape in known),
        layers=sum(shape.layers for shape in known),
        hidden=max(shape.hidden for shape in known),
        attention=sum(shape.attention * (1 if shape.causal else 2) for shape in known),
    )
