"""What the workers of a Ray cluster have done so far, for who looks on: a shard may take hours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from toa_exp.sampler import Counts

_EVERY = 2.0  # seconds


class Tally:
    """What became of the shards under way, by their numbers: an actor that workers tell."""

    def __init__(self) -> None:
        self._latest: dict[int, Counts] = {}

    def note(self, number: int, counts: Counts) -> None:
        """Take note of how a shard stands."""
        self._latest[number] = counts

    def latest(self) -> dict[int, Counts]:
        """How each shard stood when it was last told of."""
        return self._latest


@asynccontextmanager
async def telling(tally: Any, number: int, counts: Counts) -> AsyncIterator[None]:
    """Tell the actor how a shard stands, again and again, meanwhile."""

    async def tell() -> None:
        while True:
            tally.note.remote(number, replace(counts))
            await asyncio.sleep(_EVERY)

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def watching(counts: Counts) -> AsyncIterator[Watched]:
    """Keep `counts` at what shards have done so far meanwhile; in the end finished ones alone are counted."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    near = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    tally: Any = ray.remote(Tally).options(num_cpus=0, max_restarts=-1, scheduling_strategy=near).remote()
    watched = Watched(tally, counts)
    task = asyncio.create_task(watched.follow())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        watched.show({})
        with suppress(Exception):  # the cluster may be lost, and what was raised says more
            ray.kill(tally)


class Watched:
    """What the shards of a run did, finished or under way."""

    def __init__(self, tally: Any, counts: Counts) -> None:
        self.tally = tally
        self._counts = counts
        self._finished: dict[int, Counts] = {}
        self._latest: Mapping[int, Counts] = {}

    def finish(self, number: int, counts: Counts) -> None:
        """Count a shard for good."""
        self._finished[number] = counts
        self.show(self._latest)

    async def follow(self) -> None:
        """Ask the actor again and again, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            with suppress(RayError):  # it is started again, and nothing depends on it
                self.show(await self.tally.latest.remote())

    def show(self, latest: Mapping[int, Counts]) -> None:
        """Count what shards under way have done by their `latest` word."""
        self._latest = latest
        total = Counts()
        for counts in {**latest, **self._finished}.values():
            total.add(counts)
        for name in Counts.__slots__:
            setattr(self._counts, name, getattr(total, name))
