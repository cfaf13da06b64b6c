"""Runs a job in this process."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

from omegaconf import DictConfig

from toa_exp.build import build
from toa_exp.engines.base import Engine
from toa_exp.ensemble import Agent
from toa_exp.job import Job, engine_of
from toa_exp.rewards.base import Reward
from toa_exp.runner import Observer, Runner
from toa_exp.sampler import Counts
from toa_exp.storage import open_store
from toa_exp.tasks.base import Task


class Local:
    """All problems, agents and the reward in this process."""

    def engine(self, config: DictConfig, agents: Mapping[str, Agent]) -> Engine:
        """What draws the samples."""
        return engine_of(config, agents)

    def reward(self, config: DictConfig, task: Task) -> Reward:
        """What scores them."""
        reward: Reward = build(config.reward, "reward", task=task)
        return reward

    async def run(self, job: Job, path: Path, observer: Observer, counts: Counts) -> None:
        """Write a line a problem and budget to `path`, in the order of the problems."""
        async with opened(job, counts) as runner:
            await runner.run(path, observer)


@asynccontextmanager
async def opened(job: Job, counts: Counts, *, patient: bool = False) -> AsyncIterator[Runner]:
    """The runner of a job, over its store; everything is closed in the end."""
    # Samples make many objects and no cycles: a tenth of the time goes if all are looked through so often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    async with AsyncExitStack() as held:
        for part in (job.engine, job.reward, job.task):
            held.push_async_callback(part.close)
        store = held.enter_context(closing(open_store(job.store, patient=patient)))
        yield job.runner(job.sampler(store, counts))
