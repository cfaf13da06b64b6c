"""Scores outputs by the task's own references: rows of id and output."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toa_exp.core import Problem, Reply, Request, Usage
from toa_exp.errors import BadInput
from toa_exp.metrics.base import Metric
from toa_exp.metrics.coverage import sizes
from toa_exp.metrics.pooled import pools_of
from toa_exp.scoring import rows as checks
from toa_exp.scoring.counts import coverage
from toa_exp.scoring.measure import Measure, Output, Scored, mean, signed
from toa_exp.selection import majority_vote, pick
from toa_exp.stats import bootstrap
from toa_exp.tasks.base import Task, references_of

_MEND = (
    "Give one output a problem, null where it failed; task.limit=<n> or task.ids=[...] keep fewer problems"
)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The metrics of a sample, and why it failed, if it did."""

    metrics: Mapping[str, Metric]
    failed: str | None


def score_outputs(rows: Sequence[checks.Row], task: Task, *, more: bool = False) -> Scored:
    """The task's metrics of one output a problem, joined by `id`.

    An output may be a list of samples: then the metric is their mean, and accuracy also gives
    coverage (pass@<k>) and the accuracy of the majority vote. Missing outputs (null, empty) and those
    that could not be verified count as failed; they are scored as an empty text, and as wrong. Raises
    BadInput where ids are not those of the task, and where the task has no metric, unless `more` are to
    be had of the outputs.
    """
    return asyncio.run(_score(rows, task, more))


async def _score(rows: Sequence[checks.Row], task: Task, more: bool) -> Scored:
    try:
        task.count()
        problems = list(task.problems())
        identifiers = checks.identifiers(rows)
        samples = dict(zip(identifiers, map(_samples, rows), strict=True))
        for problem in getattr(task, "empty", {}).values():  # a test set's scores are over all of it
            problems.append(problem)
            samples.setdefault(problem.id, [""])
        checks.same([problem.id for problem in problems], samples, "the outputs", _MEND)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_judge(task, problem, samples[problem.id])) for problem in problems]
            chosen = [group.create_task(_vote(task, samples[problem.id])) for problem in problems]
    finally:
        await task.close()
    judged, votes = [one.result() for one in asked], [one.result() for one in chosen]
    return _gathered(task, problems, samples, judged, votes, more)


def _samples(row: checks.Row) -> list[str]:
    where = f"output of id {row.get('id')!r}"
    if "output" not in row:
        raise BadInput(f"{where} is missing; give 'output', null where it failed")
    given = row["output"] if isinstance(row["output"], list) else [row["output"]]
    if not given:
        raise BadInput(f"{where} is an empty list; give at least one sample")
    return [checks.text({"output": one}, "output", where) or "" for one in given]


async def _judge(task: Task, problem: Problem, samples: Sequence[str]) -> list[_Judged]:
    verified = getattr(task, "verified", None)
    judged = []
    for text in samples:
        failed = None if text.strip() or not problem.prompt.strip() else "empty"
        metrics = await task.score(problem, text)
        if failed is None and verified is not None and not await verified(problem, text):
            failed = "not verified"
        judged.append(_Judged(metrics, failed))
    return judged


def _gathered(
    task: Task,
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[str]],
    judged: Sequence[Sequence[_Judged]],
    votes: Sequence[int | None],
    more: bool,
) -> Scored:
    names = list(judged[0][0].metrics)
    if not names and not more:
        raise BadInput("the task's problems have no reference to score against")
    failed = sum(one.failed is not None for of_problem in judged for one in of_problem)
    several = any(len(texts) > 1 for texts in samples.values())
    pools = pools_of(getattr(task, "pools", {}))
    made = {"task": task.fingerprint(), "failed": "scored_as_empty"}
    pooled = _signatures(task, problems)
    measures: dict[str, Measure] = {}
    for name in names:
        signature = signed(name, **_flat(made))
        if name not in pools:
            values = [float(np.mean([one.metrics[name] for one in of_problem])) for of_problem in judged]
            measures[name] = mean(values, failed, signature)
        elif several:
            raise BadInput(f"{name} is of one output a problem; give no lists")
        else:
            table = np.array([of_problem[0].metrics[name] for of_problem in judged], dtype=np.float64)
            value, lower, upper = bootstrap(table, pools[name])
            signature = pooled.get(name, signature)
            measures[name] = Measure(value, (lower, upper), len(problems), failed, signature)
    if several and "accuracy" in names:
        measures |= _of_samples(judged, votes, failed, _flat(made))
    rows = [
        {"id": problem.id, **_decision(of_problem, pools), "failed": _failure(of_problem)}
        for problem, of_problem in zip(problems, judged, strict=True)
    ]
    outputs = [] if several else [_output(problem, samples[problem.id][0]) for problem in problems]
    return Scored(measures, rows, outputs, failed)


def _signatures(task: Task, problems: Sequence[Problem]) -> Mapping[str, str]:
    """Those that a task has of its own for its metrics."""
    made = getattr(task, "signatures", None)
    if made is None:
        return {}
    counts = {len(references_of(problem)) for problem in problems}
    found: Mapping[str, str] = made(counts.pop() if len(counts) == 1 else -1)
    return found


def _output(problem: Problem, text: str) -> Output:
    return Output(problem.id, problem.prompt, text, references_of(problem))


def _of_samples(
    judged: Sequence[Sequence[_Judged]], votes: Sequence[int | None], failed: int, made: Mapping[str, Any]
) -> dict[str, Measure]:
    """Coverage, and the accuracy of the samples that were voted for; without one a problem is failed."""
    counts = [(len(ones), sum(one.metrics["accuracy"] == 1.0 for one in ones)) for ones in judged]
    right = [
        0.0 if chosen is None else float(ones[chosen].metrics["accuracy"] == 1.0)
        for ones, chosen in zip(judged, votes, strict=True)
    ]
    signature = signed("majority_vote", **{**made, "ties": "first", "failed": "wrong"})
    vote = mean(right, sum(chosen is None for chosen in votes), signature)
    return coverage(counts, sizes(min(n for n, _ in counts)), failed) | {"majority_vote": vote}


async def _vote(task: Task, samples: Sequence[str]) -> int | None:
    """The sample that the majority's answer stands in, None without any answer."""
    if len(samples) == 1:
        return 0 if samples[0].strip() else None
    return await pick(majority_vote, [_reply(text) for text in samples], task)


def _reply(text: str) -> Reply:
    return Reply(Request("outputs"), text, 0.0, Usage(0, 0), None if text.strip() else "empty")


def _decision(ones: Sequence[_Judged], pools: Mapping[str, object]) -> dict[str, Any]:
    plain = [name for name in ones[0].metrics if name not in pools]
    return {name: float(np.mean([one.metrics[name] for one in ones])) for name in plain}


def _failure(ones: Sequence[_Judged]) -> str | None:
    """Why a problem has no answer at all, None where a sample is one."""
    return ones[0].failed if all(one.failed for one in ones) else None


def _flat(made: Mapping[str, Any]) -> dict[str, Any]:
    task = {key: value for key, value in made["task"].items() if not isinstance(value, Mapping)}
    return {**task, "failed": made["failed"]}
