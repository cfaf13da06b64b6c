"""Draws and scores, each made once: from the store, from a request under way, or afresh."""

from __future__ import annotations

from dataclasses import dataclass, replace

from toa_exp.core import Problem
from toa_exp.draws import Draw, Sample, Score
from toa_exp.engines.base import Engine
from toa_exp.patience import Patience, SingleFlight
from toa_exp.rewards.base import Reward
from toa_exp.rewards.warmup import WarmUp
from toa_exp.scorer import Scorer
from toa_exp.storage import Storage


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

    def add(self, other: Counts) -> None:
        """Add what another process did."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Sampler:
    """Gives each trajectory its samples and scores, sharing them through the store.

    A request that fails for want of infrastructure is sent up to `retries` times more, after
    `backoff` seconds at first and twice as long each time, up to a minute. Without a reward nothing is
    scored. `first` is called before the first score that is not in the store.
    """

    def __init__(
        self,
        engine: Engine,
        reward: Reward | None,
        store: Storage,
        *,
        retries: int,
        backoff: float,
        counts: Counts | None = None,
        first: WarmUp | None = None,
    ) -> None:
        self.counts = counts or Counts()
        self.agent_digests = {
            name: store.register(agent.fingerprint()) for name, agent in engine.agents.items()
        }
        self.simulated = {name for name, agent in engine.agents.items() if agent.simulated}
        self._engine = engine
        self._store = store
        self._patience = Patience(retries, backoff, self._retried)
        self._once: SingleFlight[tuple[Sample, Score | None]] = SingleFlight()
        self.scorer: Scorer | None = None
        if reward is not None:
            self.scorer = Scorer(reward, store, self._patience, self._scored, first)

    async def answer(self, draw: Draw) -> tuple[Sample, Score | None]:
        """The sample of a draw and its score, None for a failure, which has none.

        Raises Unavailable where the engine or the reward had none after all retries.
        """
        counts = self.counts
        stored = await self._store.get_draw(draw)
        if stored is None:
            sample, score = await self._once(draw.key, self._draw, draw)
        else:
            counts.stored += 1
            sample, score = stored, await self.score(draw.problem, stored)
        counts.samples += 1
        counts.tokens += sample.usage.prompt_tokens + sample.usage.completion_tokens
        counts.failures += sample.failure is not None
        return sample, score

    async def _draw(self, draw: Draw) -> tuple[Sample, Score | None]:
        made = await self._patience(self._engine.sample, draw)
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
        if self.scorer is None or sample.failure is not None:
            return None
        return await self.scorer(problem, sample.text)

    def _scored(self) -> None:
        self.counts.scored += 1

    def _retried(self) -> None:
        self.counts.retries += 1
