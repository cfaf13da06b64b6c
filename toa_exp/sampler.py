"""Draws and scores, each made once: from the store, from a request under way, or afresh."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random
from typing import ParamSpec, TypeVar

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
    `backoff` seconds at first and twice as long each time, up to a minute.
    """

    def __init__(self, engine: Engine, reward: Reward, store: Store, *, retries: int, backoff: float) -> None:
        self.counts = Counts()
        self.agent_digests = {
            name: store.register(agent.fingerprint()) for name, agent in engine.agents.items()
        }
        self.simulated = {name for name, agent in engine.agents.items() if agent.simulated}
        self._engine = engine
        self._reward = reward
        self._reward_digest = store.register(reward.fingerprint())
        self._store = store
        self._retries = retries
        self._backoff = backoff
        self._jitter = Random(0)  # spreads retries over time; no result depends on it
        self._samples: dict[bytes, asyncio.Future[Sample]] = {}
        self._scores: dict[bytes, asyncio.Future[Score]] = {}

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw. Raises Unavailable where the engine had none after all retries."""
        sample = await self._store.get_draw(draw)
        counts = self.counts
        if sample is None:
            sample = await self._once(self._samples, draw.key, self._draw, draw)
        else:
            counts.stored += 1
        counts.samples += 1
        counts.tokens += sample.usage.prompt_tokens + sample.usage.completion_tokens
        counts.failures += sample.failure is not None
        return sample

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of a text. Raises Unavailable where the reward had none after all retries."""
        key = score_key(self._reward_digest, problem, text)
        score = await self._store.get_score(key)
        if score is None:
            score = await self._once(self._scores, key.digest, self._score, problem, text, key)
        return score

    async def _draw(self, draw: Draw) -> Sample:
        sample = await self._patiently(self._engine.sample, draw)
        self.counts.drawn += 1
        # As the store will give it back: lone surrogates fit in no file.
        if not sample.text.isascii():
            sample = replace(sample, text=sample.text.encode("utf-8", "replace").decode())
        return await self._store.put_draw(draw, sample)

    async def _score(self, problem: Problem, text: str, key: ScoreKey) -> Score:
        made = await self._patiently(self._reward.score, problem, text)
        self.counts.scored += 1
        # As the store will give it back: no integer, no negative zero.
        score = Score(float(made.reward) + 0.0, int(made.tokens), float(made.seconds) + 0.0)
        if not math.isfinite(score.reward):
            raise Permanent(f"the reward gave {score.reward} for an answer to problem {problem.id!r}")
        return await self._store.put_score(key, score)

    async def _once(
        self,
        under_way: dict[bytes, asyncio.Future[Value]],
        key: bytes,
        make: Callable[Given, Awaitable[Value]],
        *given: Given.args,
        **named: Given.kwargs,
    ) -> Value:
        """What `make` gives; whoever asks for the same key meanwhile is given the same."""
        future = under_way.get(key)
        if future is not None:
            return await asyncio.shield(future)
        future = under_way[key] = asyncio.get_running_loop().create_future()
        try:
            value = await make(*given, **named)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.set_exception(error)
            future.exception()  # seen: nobody else may be waiting for it
            raise
        finally:
            del under_way[key]
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
