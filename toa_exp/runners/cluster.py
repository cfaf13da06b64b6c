"""A job on a Ray cluster: shards of its problems are tasks, agents and the reward are actors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from toa_exp.aio import gather_all, in_order
from toa_exp.core import Problem
from toa_exp.errors import BadInput, Unavailable
from toa_exp.job import Job, engine_node
from toa_exp.runner import Observer, write
from toa_exp.runners.actors import Actor, Actors, unwrapped
from toa_exp.runners.connection import cluster, first_line, last_line, machines, nodes
from toa_exp.runners.models import check_gpus
from toa_exp.runners.placement import Share, check
from toa_exp.runners.ray import Ray
from toa_exp.runners.settings import Settings
from toa_exp.runners.shard import Shard, run_shard
from toa_exp.runners.tally import watching
from toa_exp.sampler import Counts
from toa_exp.storage import is_url, open_store

log = logging.getLogger(__name__)

_AHEAD = 4  # shards of each worker that are begun while one before them is slow
_REQUESTS = 100_000  # that an actor takes at once; engines bound their batches themselves
_WORD = 30.0  # seconds after which it is said again what Ray has not placed


class Spread:
    """A job that is spread over the cluster of `place`; this process merges what comes of it."""

    def __init__(self, place: Ray, job: Job) -> None:
        self._place = place
        self._job = job

    async def run(self, path: Path, observer: Observer, counts: Counts) -> None:
        """Write a line a problem and budget to `path`, in the order of the problems."""
        job, place = self._job, self._place
        open_store(job.store).close()  # it is there and can be used
        with cluster(place.address), path.open("w", encoding="utf-8") as file:
            self._check()
            settings = Settings.of(job)

            def done(part: _Part, shard: Shard) -> None:
                for problem, result in zip(part.problems, shard.results, strict=True):
                    write(file, observer, problem, result)

            async with self._actors(settings) as actors, watching(counts) as watched:
                await placed([("a worker (runner.num_cpus)", _room(place.worker))])
                told = ray.put(settings)

                async def solve(part: _Part) -> Shard:
                    shard = await self._solve(told, actors, watched.tally, part)
                    watched.finish(part.number, shard.counts)
                    return shard

                parts = _parts(job.task.problems(), shard_size(job.problems, place.workers, place.shard))
                await in_order(parts, solve, done, place.workers, ahead=_AHEAD * place.workers)

    async def _solve(self, settings: Any, actors: Actors, tally: Any, part: _Part) -> Shard:
        """What came of a shard, by as many workers as it takes."""
        for attempt in range(self._place.retries + 1):
            try:
                shard: Shard = await _shard_task(self._place.worker).remote(settings, actors, tally, *part)
                return shard
            except RayTaskError as error:
                raise unwrapped(error) from None
            except RayError as error:
                reason = first_line(error)
                left = self._place.retries - attempt
                log.warning(
                    "a worker was lost with shard %d, problems %s to %s (%s); %s",
                    part.number,
                    part.problems[0].id,
                    part.problems[-1].id,
                    reason,
                    "another takes it over" if left else "given up",
                )
        lost = Unavailable(f"{self._place.retries + 1} workers were lost with it, the last: {reason}")
        return Shard([lost] * len(part.problems))

    def _check(self) -> None:
        """Raise BadInput where the cluster can never hold what is asked for."""
        job, place = self._job, self._place
        if (number := machines()) > 1 and not is_url(job.store):
            raise BadInput(
                f"the Ray cluster has {number} machines, which cannot share the file {job.store}; choose "
                f"store=postgresql store.url=postgresql://user@host:5432/database"
            )
        resources = _resources()
        agents = job.engine.agents
        shares = [(f"agent {name!r} (runner.agents.{name})", place.agent_share(name)) for name in agents]
        shares.append(("the reward (runner.reward)", place.reward_share))
        if any(node.get("GPU") for node in resources):
            parts = [*(engine_node(job.config, agent) for agent in agents.values()), job.config.reward]
            for (what, share), part, name in zip(shares, parts, [*agents, None], strict=True):
                check_gpus(what, share, part, name)
        check(resources, [("a worker (runner.num_cpus)", place.worker), *shares])

    @asynccontextmanager
    async def _actors(self, settings: Settings) -> AsyncIterator[Actors]:
        """The actors, ready to be asked; ended in the end."""
        place, names = self._place, list(self._job.engine.agents)
        wanted = [(name, place.agent_share(name)) for name in names]
        started: dict[str | None, list[Any]] = {}

        def all_actors() -> list[Any]:
            return list(itertools.chain(*started.values()))

        try:
            for group in hardest_first(_resources(), [*wanted, (None, place.reward_share)]):
                made = {name: self._start(settings, name, share) for name, share in group}
                started |= made
                await placed([(_named(name), actor.__ray_ready__) for name in made for actor in made[name]])
            named = [(_named(name), actor) for name, actors in started.items() for actor in actors]
            await gather_all([_started(what, actor.ready) for what, actor in named])
            yield Actors({name: started[name] for name in names}, started[None], place.patience)
            with contextlib.suppress(RayError):  # one that dies now is no loss
                await gather_all([_answer(actor.close) for actor in all_actors()])
        finally:
            for actor in all_actors():
                ray.kill(actor)

    def _start(self, settings: Settings, agent: str | None, share: Share) -> list[Any]:
        options = {**share.options(), "max_restarts": self._place.restarts, "max_concurrency": _REQUESTS}
        made = ray.remote(Actor).options(**options)
        return [made.remote(settings, agent) for _ in range(share.replicas)]


def hardest_first(
    resources: Sequence[Mapping[str, float]], wanted: Sequence[tuple[str | None, Share]]
) -> Iterator[list[tuple[str | None, Share]]]:
    """Those that are as hard to place at once, the hardest first: else others take their room."""

    def rank(pair: tuple[str | None, Share]) -> tuple[float, ...]:
        return pair[1].rank(resources)

    for _, group in itertools.groupby(sorted(wanted, key=rank), key=rank):
        yield list(group)


async def placed(wanted: Sequence[tuple[str, Any]]) -> None:
    """Wait until Ray has a place for all that is wanted, each with a method that answers then.

    What it has not placed after a while is named. Raises as `_started` does.
    """
    waits = {asyncio.create_task(_started(what, method)): what for what, method in wanted}
    pending = set(waits)
    while pending:
        done, pending = await asyncio.wait(pending, timeout=_WORD, return_when=asyncio.FIRST_EXCEPTION)
        for wait in done:
            wait.result()
        if pending:
            missing = Counter(what for one, what in waits.items() if one in pending)
            log.warning(
                "waiting for Ray to place %s. What they take may be held by other jobs (`ray status`), or "
                "split over machines",
                ", ".join(f"{number} x {what}" for what, number in missing.items()),
            )


def _resources() -> list[dict[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in nodes()]


def _named(agent: str | None) -> str:
    return "the reward" if agent is None else f"agent {agent!r}"


def _room(share: Share) -> Any:
    """A task that does nothing, where there is room for a worker."""
    return ray.remote(lambda: None).options(**share.options(), name="toa-exp room")


def shard_size(problems: int, workers: int, most: int) -> int:
    """How many problems a shard has: up to `most`, and fewer where a worker would get none."""
    return max(1, min(most, math.ceil(problems / workers)))


class _Part(NamedTuple):
    """A shard of the problems."""

    problems: list[Problem]
    number: int


def _parts(problems: Iterator[Problem], size: int) -> Iterator[_Part]:
    for number in itertools.count():
        part = list(itertools.islice(problems, size))
        if not part:
            return
        yield _Part(part, number)


def _shard_task(share: Share) -> Any:
    # Ray's own retries would be silent.
    return ray.remote(run_shard).options(
        **share.options(), max_retries=0, scheduling_strategy="SPREAD", name="toa-exp shard"
    )


async def _answer(method: Any) -> None:
    """Wait for an actor's method; raises what it raised there."""
    try:
        await method.remote()
    except RayTaskError as error:
        raise unwrapped(error) from None


async def _started(what: str, method: Any) -> None:
    """`_answer` of what is being started; raises Unavailable where its process or machine ends."""
    try:
        await _answer(method)
    except RayError as error:
        raise Unavailable(
            f"{what} ended while it was started ({last_line(error)}). Where it ran out of memory or crashed, "
            f"the logs of Ray on its machine say more: give it more room, or mend what it runs"
        ) from error
