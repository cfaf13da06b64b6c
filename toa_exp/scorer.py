"""Scores, each made once: from the store, from a request under way, or afresh."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from toa_exp.aio import gather_all
from toa_exp.core import Problem
from toa_exp.draws import Score, ScoreKey, score_key
from toa_exp.errors import Permanent, told_at
from toa_exp.patience import Patience, SingleFlight
from toa_exp.rewards.base import Reward
from toa_exp.storage import Storage

ScoreOf = Callable[[Problem, str], Awaitable[Score]]


class Scorer:
    """Gives the scores of one reward, sharing them through the store.

    A reward that is made of others has its members' scores stored under their own keys, where runs with
    one of them alone find them. `first`, where it is given, is called before the first score that is not
    in the store, with a function that gives scores. `made` is called for each that is made afresh.
    """

    def __init__(
        self,
        reward: Reward,
        store: Storage,
        patience: Patience,
        made: Callable[[], None] | None = None,
        first: Callable[[ScoreOf], Awaitable[None]] | None = None,
    ) -> None:
        self._first = first
        self._made = made
        self._reward: Any = reward  # it may have `members`
        self._digest = store.register(reward.fingerprint())
        self._store = store
        self._patience = patience
        self._once: SingleFlight[Score] = SingleFlight()
        self._turn = asyncio.Lock()
        self._members = {
            name: Scorer(member, store, patience) for name, member in getattr(reward, "members", {}).items()
        }

    async def __call__(self, problem: Problem, text: str) -> Score:
        """The score of a text; raises Unavailable where the reward gave none after all retries."""
        key = score_key(self._digest, problem, text)
        score = await self._store.get_score(key)
        if score is None:
            if self._first is not None:
                await self._begin()
                score = await self._store.get_score(key)  # it may have been one of the first
            score = score or await self._once(key.digest, self._make, problem, text, key)
        return score

    async def _begin(self) -> None:
        async with self._turn:
            first = self._first
            if first is not None:
                await first(self._unprepared)
                self._first = None

    async def _unprepared(self, problem: Problem, text: str) -> Score:
        """The score of a text, before `first` is done."""
        key = score_key(self._digest, problem, text)
        score = await self._store.get_score(key)
        return score or await self._once(key.digest, self._make, problem, text, key)

    async def _make(self, problem: Problem, text: str, key: ScoreKey) -> Score:
        if self._members:
            made = await self._combined(problem, text)
        else:
            made = await self._patience(self._reward.score, problem, text)
        if self._made is not None:
            self._made()
        # As the store will give it back: no integer, no negative zero.
        score = Score(float(made.reward) + 0.0, int(made.tokens), float(made.seconds) + 0.0)
        if not math.isfinite(score.reward):
            raise Permanent(f"the reward gave {score.reward} for an answer to problem {problem.id!r}")
        return await self._store.put_score(key, score)

    async def _combined(self, problem: Problem, text: str) -> Score:
        await self._reward.calibrate(self._members)
        scores = await gather_all([self._one(name, problem, text) for name in self._members])
        made: Score = self._reward.combine(dict(zip(self._members, scores, strict=True)))
        return made

    async def _one(self, name: str, problem: Problem, text: str) -> Score:
        with told_at("reward", f"reward.members.{name}"):
            return await self._members[name](problem, text)
