"""Runs a job on a Ray cluster: shards of its problems are tasks, agents and the reward are actors."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from toa_exp.aio import gather_all, in_order
from toa_exp.build import call
from toa_exp.core import Problem
from toa_exp.engines.base import Engine
from toa_exp.engines.replay import Replay
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Unavailable, choose, missing_extra
from toa_exp.job import Job
from toa_exp.runner import Observer, write
from toa_exp.runners.local import Local
from toa_exp.runners.placement import Share, check
from toa_exp.sampler import Counts
from toa_exp.storage import is_url, open_store

try:
    import ray
except ImportError as error:
    raise missing_extra("ray", "ray") from error

from ray.exceptions import RayError, RayTaskError

from toa_exp.runners.actors import Actor, Actors, first_line, unwrapped
from toa_exp.runners.settings import Settings
from toa_exp.runners.shard import Shard, run_shard

log = logging.getLogger(__name__)

_REQUESTS = 100_000  # that an actor takes at once; engines bound their batches themselves


class Ray(Local):
    """Problems in shards of `shard` on `workers` workers; agents and the reward as actors.

    `address` is that of a cluster, "auto" for the one this machine is part of, None for $RAY_ADDRESS
    and, without it, a cluster of this machine alone. Ray sets aside `num_cpus` for a worker, and for
    each replica of an actor what `agent`, `agents` (by name) and `reward` say. A shard whose worker
    dies is given to another, up to `retries` times; an actor is started again up to `restarts` times
    and waited for, up to `patience` seconds.
    """

    def __init__(
        self,
        *,
        address: str | None,
        workers: int,
        shard: int,
        num_cpus: float,
        retries: int,
        restarts: int,
        patience: float,
        agent: Mapping[str, Any],
        agents: Mapping[str, Mapping[str, Any]] | None,
        reward: Mapping[str, Any],
    ) -> None:
        for name, value, low in (("workers", workers, 1), ("shard", shard, 1), ("retries", retries, 0),
                                 ("restarts", restarts, 0), ("num_cpus", num_cpus, 0)):  # fmt: skip
            if value < low:
                raise BadInput(f"runner.{name}={value} must be at least {low}")
        self._address = address
        self._workers = workers
        self._shard = shard
        self._worker = Share(replicas=1, num_cpus=num_cpus)
        self._retries = retries
        self._restarts = restarts
        self._patience = patience
        self._agent = agent
        self._agents = agents or {}
        self._reward = call(Share, reward, "runner.reward")

    def engine(self, config: DictConfig, agents: Mapping[str, Agent]) -> Engine:
        """Draws nothing: the agents' engines are elsewhere."""
        for name in self._agents:
            if name not in agents:
                raise choose("agent in runner.agents:", name, list(agents))
        return Replay(agents)

    async def run(self, job: Job, path: Path, observer: Observer, counts: Counts) -> None:
        """Write a line a problem and budget to `path`, in the order of the problems."""
        open_store(job.store).close()  # it is there and can be used
        with _cluster(self._address), path.open("w", encoding="utf-8") as file:
            self._check(job)
            settings = Settings.of(job)

            def done(part: _Part, shard: Shard) -> None:
                counts.add(shard.counts)
                for problem, result in zip(part.problems, shard.results, strict=True):
                    write(file, observer, problem, result)

            async with self._actors(job, settings) as actors:
                work = partial(self._solve, ray.put(settings), actors)
                await in_order(_parts(job.task.problems(), self._shard), work, done, self._workers)

    async def _solve(self, settings: Any, actors: Actors, part: _Part) -> Shard:
        """What came of a shard, by as many workers as it takes."""
        for attempt in range(self._retries + 1):
            try:
                shard: Shard = await _shard_task(self._worker).remote(settings, actors, *part)
                return shard
            except RayTaskError as error:
                raise unwrapped(error) from None
            except RayError as error:
                reason = first_line(error)
                left = self._retries - attempt
                log.warning(
                    "a worker was lost with shard %d, problems %s to %s (%s); %s",
                    part.number,
                    part.problems[0].id,
                    part.problems[-1].id,
                    reason,
                    "another takes it over" if left else "given up",
                )
        lost = Unavailable(f"{self._retries + 1} workers were lost with it, the last: {reason}")
        return Shard([lost] * len(part.problems))

    def _check(self, job: Job) -> None:
        """Raise BadInput where the cluster can never hold what is asked for."""
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in known if node["Alive"]]
        hosts = {node["NodeManagerAddress"] for node in nodes}
        if len(hosts) > 1 and not is_url(job.store):
            raise BadInput(
                f"the Ray cluster has {len(hosts)} machines, which cannot share the file {job.store}; choose "
                f"store=postgresql store.url=postgresql://user@host:5432/database"
            )
        shares = [("a worker (runner.num_cpus)", self._worker)]
        shares += [(f"agent {name!r} (runner.agents.{name})", self._of(name)) for name in job.engine.agents]
        shares += [("the reward (runner.reward)", self._reward)]
        check([node["Resources"] for node in nodes], shares)

    def _of(self, agent: str) -> Share:
        return call(Share, {**self._agent, **self._agents.get(agent, {})}, f"runner.agents.{agent}")

    @asynccontextmanager
    async def _actors(self, job: Job, settings: Settings) -> AsyncIterator[Actors]:
        """The actors, ready to be asked; ended in the end."""
        agents = {name: self._start(settings, name, self._of(name)) for name in job.engine.agents}
        actors = Actors(agents, self._start(settings, None, self._reward), self._patience)
        try:
            await gather_all([_answer(actor.ready) for actor in actors.all])
            yield actors
            with contextlib.suppress(RayError):  # one that dies now is no loss
                await gather_all([_answer(actor.close) for actor in actors.all])
        finally:
            for actor in actors.all:
                ray.kill(actor)

    def _start(self, settings: Settings, agent: str | None, share: Share) -> list[Any]:
        options = {**share.options(), "max_restarts": self._restarts, "max_concurrency": _REQUESTS}
        made = ray.remote(Actor).options(**options)
        return [made.remote(settings, agent) for _ in range(share.replicas)]


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


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connected to a Ray cluster; raises BadInput where there is none at the address."""
    if ray.is_initialized():  # this process is itself a worker, or its owner manages Ray
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": where} if where else {"include_dashboard": False}
    try:
        ray.init(logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"there is no Ray cluster at {where!r} ({first_line(error)}). Start one with `ray start --head` "
            f"and give runner.address=<host>:6379, or leave it out to use this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
