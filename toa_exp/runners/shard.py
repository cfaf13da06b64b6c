"""A part of a job's problems, run by a worker of a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from toa_exp.core import Problem, Reply, Request
from toa_exp.errors import Unavailable
from toa_exp.job import assemble
from toa_exp.runner import Result
from toa_exp.runners.actors import Actors, Remote
from toa_exp.runners.local import opened
from toa_exp.runners.settings import Settings
from toa_exp.runners.tally import telling
from toa_exp.sampler import Counts
from toa_exp.trajectory import Step


@dataclass
class Shard:
    """What came of some problems, in their order, and what it took."""

    results: list[Result] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


def run_shard(
    settings: Settings, actors: Actors, tally: Any, problems: Sequence[Problem], number: int
) -> Shard:
    """Run the method on some problems of a job; `number` tells shards apart, `tally` how this one stands."""
    return asyncio.run(_run(settings, actors, tally, problems, number))


async def _run(
    settings: Settings, actors: Actors, tally: Any, problems: Sequence[Problem], number: int
) -> Shard:
    job = assemble(settings.enter(), settings.overrides, Remote(actors, number))
    shard = Shard()
    async with opened(job, shard.counts, patient=True) as runner, telling(tally, number, shard.counts):
        await runner.solve(problems, lambda _, result: shard.results.append(_light(result)))
    return shard


def _light(result: Result) -> Result:
    """A result without the texts, which are in the store: they would be most of what is sent."""
    if isinstance(result, Unavailable):
        return Unavailable(str(result))
    return [replace(outcome, steps=[_without_text(step) for step in outcome.steps]) for outcome in result]


def _without_text(step: Step) -> Step:
    reply = step.reply
    request = Request(reply.request.agent, reply.request.template)
    bare = Reply(request, "", reply.reward, reply.usage, reply.failure)
    return Step(bare, step.parents, step.key, step.cost)
