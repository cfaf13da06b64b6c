"""Draws and scores, each made once: from the store, from a request under way, or afresh."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ParamSpec, TypeVar

from toa_exp.core import Problem
from toa_exp.draws import Draw, Sample, Score, ScoreKey, score_key
from toa_exp.engines.base import Engine
from toa_exp.errors import Permanent, Unavailable
from toa_exp.rewards.base import Reward
from toa_exp.store import Store

log = logging.getLogger(__name__)
Given = ParamSpec("Given")
Value = TypeVar("Value")


@dataclass(slots=True)
class Counts:
    """What a run did so far.

    `samples` were handed to searches, `drawn` came from the engine and `stored` from the store.
    `retries` counts requests that had to be sent again.
    """

    samples: int = 0
    tokens: int = 0
    drawn: int = 0
    stored: int = 0
    scored: int = 0
    failures: int = 0
    retries: int = 0


class Sampler:
    """Gives each trajectory its samples and scores, sharing them through the store.

    A request that fails for want of infrastructure is sent up to `retries` times more, after
    `backoff` seconds at first and twice as long each time, up to a minute. Without a reward nothing is
    scored.
    """

    def __init__(
        self, engine: Engine, reward: Reward | None, store: Store, *, retries: int, backoff: float
    ) -> None:
        self.counts = Counts()
        self.agent_digests = {
            name: store.register(agent.fingerprint()) for name, agent in engine.agents.items()
        }
        self.simulated = {name for name, agent in engine.agents.items() if agent.simulated}
        self._engine = engine
        self._reward = reward
        self._reward_digest = b"" if reward is None else store.register(reward.fingerprint())
        self._store = store
        self._retries = retries
        self._backoff = backoff
        self._jitter = Random(0)  # spreads retries over time; no result depends on it
        self._answers: dict[bytes, asyncio.Future[tuple[Sample, Score | None]] | None] = {}
        self._scores: dict[bytes, asyncio.Future[Score] | None] = {}

    async def answer(self, draw: Draw) -> tuple[Sample, Score | None]:
        """The sample of a draw and its score, None for a failure, which has none.

        Raises Unavailable where the engine or the reward had none after all retries.
        """
        counts = self.counts
        stored = await self._store.get_draw(draw)
        if stored is None:
            sample, score = await self._once(self._answers, draw.key, self._draw, draw)
        else:
            counts.stored += 1
            sample, score = stored, await self.score(draw.problem, stored)
        counts.samples += 1
        counts.tokens += sample.usage.prompt_tokens + sample.usage.completion_tokens
        counts.failures += sample.failure is not None
        return sample, score

    async def _draw(self, draw: Draw) -> tuple[Sample, Score | None]:
        made = await self._patiently(self._engine.sample, draw)
        self.counts.drawn += 1
        # As the store will give it back: lone surrogates fit in no file.
        if not made.text.isascii():
            made = replace(made, text=made.text.encode("utf-8", "replace").decode())
        # It is scored while it is stored, so that a reward that answers at once shares the commit.
        storing = self._store.put_draw(draw, made)
        try:
            score = await self.score(draw.problem, made)
        finally:
            sample = await storing
        if sample is not made:  # another process was first
            score = await self.score(draw.problem, sample)
        return sample, score

    async def score(self, problem: Problem, sample: Sample) -> Score | None:
        """The score of a sample, None for a failure; raises Unavailable as `answer` does."""
        if self._reward is None or sample.failure is not None:
            return None
        key = score_key(self._reward_digest, problem, sample.text)
        score = await self._store.get_score(key)
        if score is None:
            score = await self._once(self._scores, key.digest, self._judge, problem, sample.text, key)
        return score

    async def _judge(self, problem: Problem, text: str, key: ScoreKey) -> Score:
        assert self._reward is not None
        made = await self._patiently(self._reward.score, problem, text)
        self.counts.scored += 1
        # As the store will give it back: no integer, no negative zero.
        score = Score(float(made.reward) + 0.0, int(made.tokens), float(made.seconds) + 0.0)
        if not math.isfinite(score.reward):
            raise Permanent(f"the reward gave {score.reward} for an answer to problem {problem.id!r}")
        return await self._store.put_score(key, score)

    async def _once(
        self,
        under_way: dict[bytes, asyncio.Future[Value] | None],
        key: bytes,
        make: Callable[Given, Awaitable[Value]],
        *given: Given.args,
        **named: Given.kwargs,
    ) -> Value:
        """What `make` gives; whoever asks for the same key meanwhile is given the same."""
        if key in under_way:
            future = under_way[key]
            if future is None:
                future = under_way[key] = asyncio.get_running_loop().create_future()
            return await asyncio.shield(future)
        under_way[key] = None  # few are asked for twice: who asks first makes the future
        try:
            value = await make(*given, **named)
        except BaseException as error:
            future = under_way.pop(key)
            if future is not None:
                _fail(future, error)
            raise
        future = under_way.pop(key)
        if future is not None:
            future.set_result(value)
        return value

    async def _patiently(
        self, ask: Callable[Given, Awaitable[Value]], *given: Given.args, **named: Given.kwargs
    ) -> Value:
        """The answer of `ask`, tried again after Unavailable."""
        for attempt in range(self._retries + 1):
            try:
                return await ask(*given, **named)
            except Permanent:
                raise
            except Unavailable as error:
                if attempt == self._retries:
                    raise
                wait = min(60.0, self._backoff * 2**attempt) * (0.5 + self._jitter.random())
                self.counts.retries += 1
                log.warning("%s; trying again in %.1f s", error, wait)
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Give those who wait for a future the error that ended its making."""
    if isinstance(error, Exception):
        future.set_exception(error)
        future.exception()  # seen: those who wait may have been cancelled
    else:
        future.cancel()
