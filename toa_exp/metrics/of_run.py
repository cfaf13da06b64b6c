"""Metrics that are added to stored runs: `toa-exp evaluate`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toa_exp.core import Problem, Reply
from toa_exp.errors import BadInput
from toa_exp.metrics.base import Metric
from toa_exp.metrics.coverage import pass_at_k
from toa_exp.metrics.judging import Pair, WeightedJudge
from toa_exp.scoring.files import read
from toa_exp.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """A problem at one budget: its samples, and the index of the one that is the answer."""

    problem: Problem
    replies: Sequence[Reply]
    answer: int

    @property
    def text(self) -> str:
        """The answer."""
        return self.replies[self.answer].text


class RunMetric(Protocol):
    """Measures the answers of a run; `needs` names what it is given beside its configuration."""

    needs: tuple[str, ...]

    @property
    def pools(self) -> Mapping[str, str]:
        """The functions of the metrics that are no mean, by import path (metrics/pooled.py)."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides its values, beside the answers."""
        ...

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The metrics of each answer, the same names for all."""
        ...

    async def close(self) -> None:
        """Free what the metric holds."""
        ...


class TaskMetrics:
    """What the run's task measures, anew: for another selection, or a judge that has changed."""

    needs: tuple[str, ...] = ("task",)

    def __init__(self, *, task: Task) -> None:
        self._task = task

    @property
    def pools(self) -> Mapping[str, str]:
        """The task's."""
        return dict(getattr(self._task, "pools", {}))

    def fingerprint(self) -> Mapping[str, Any]:
        """The task's."""
        return self._task.fingerprint()

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The task's metrics of each answer."""
        return [dict(await self._task.score(answered.problem, answered.text)) for answered in answers]

    async def close(self) -> None:
        """Nothing is held; the task is closed by who made it."""


class Coverage:
    """Whether any sample of a search is right, `coverage`, and the unbiased estimate at each `k`.

    Both are of the task's accuracy. pass@<k> reads a search's samples as if they were drawn alike,
    which those of a method that refines are not. Failed samples are wrong.
    """

    needs: tuple[str, ...] = ("task",)
    pools: Mapping[str, str] = {}

    def __init__(self, *, task: Task, k: Sequence[int] = ()) -> None:
        self._task = task
        self._ks = list(k)

    def fingerprint(self) -> Mapping[str, Any]:
        """The task's, and k."""
        return {**self._task.fingerprint(), "k": self._ks}

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """`coverage` and pass@<k> of each problem; raises BadInput where it has fewer samples."""
        return [await self._of(answered) for answered in answers]

    async def _of(self, answered: Answered) -> Mapping[str, Metric]:
        right = 0
        for reply in answered.replies:
            if reply.failure is None:
                metrics = await self._task.score(answered.problem, reply.text)
                if "accuracy" not in metrics:
                    raise BadInput("coverage is of the accuracy of samples, which this task does not have")
                right += metrics["accuracy"] == 1.0
        samples = len(answered.replies)
        return {"coverage": float(right > 0), **{f"pass@{k}": pass_at_k(samples, right, k) for k in self._ks}}

    async def close(self) -> None:
        """Nothing is held; the task is closed by who made it."""


class WinRate:
    """The rate in per cent at which a judge prefers answers to a baseline's.

    The baseline is that of AlpacaEval's own file, or the `output` by `instruction` of the file
    `baseline`. `win_rate` is over the comparisons that the judge decided, `judge_failed` the share of
    the others, and `judge_tokens` what a comparison took: it is no part of the run's cost.
    `lc_win_rate` controls for length by the answers of this run alone; for AlpacaEval's own
    regression score the annotations that are written beside the run.
    """

    needs: tuple[str, ...] = ("judge",)
    pools: Mapping[str, str] = {
        "win_rate": "toa_exp.metrics.pooled.judged_win_rate",
        "lc_win_rate": "toa_exp.metrics.pooled.lc_win_rate_of_judged",
    }

    def __init__(self, *, judge: WeightedJudge, baseline: str | None = None) -> None:
        self._judge = judge
        self._baseline_file = baseline
        self._outputs = None if baseline is None else _outputs(baseline)
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}

    def fingerprint(self) -> Mapping[str, Any]:
        """The judge, and the baseline's file."""
        return {**self._judge.fingerprint(), "baseline": self._baseline_file}

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The statistics of each comparison."""
        rows = await self._compare(answers)
        undecided = sum(row["preference"] is None for row in rows)
        if undecided:
            log.warning(
                "the judge decided %d of %d comparisons; the others have no verdict that could be read, and "
                "are asked for again when the command is",
                len(rows) - undecided,
                len(rows),
            )
        self._compared |= {(row["instruction"], row["output_2"]): row for row in rows}
        return [self._statistics(row) for row in rows]

    def compared(self, answers: Sequence[Answered]) -> list[dict[str, Any]]:
        """The comparisons of measured answers in the form of AlpacaEval's annotations."""
        return [self._compared[answered.problem.prompt, answered.text] for answered in answers]

    async def _compare(self, answers: Sequence[Answered]) -> list[dict[str, Any]]:
        pairs = [Pair(a.problem.prompt, self._baseline(a.problem), a.text) for a in answers]
        judgements = await asyncio.to_thread(self._judge.judge, pairs)
        return [
            {
                "instruction": p.instruction,
                "output_1": p.baseline,
                "output_2": p.output,
                "generator_1": "baseline",
                "generator_2": "answers",
                "annotator": self._judge.name,
                "preference": j.preference,
                "tokens": j.tokens,
                "seconds": j.seconds,
            }
            for p, j in zip(pairs, judgements, strict=True)
        ]

    def _statistics(self, row: Mapping[str, Any]) -> Mapping[str, Metric]:
        preference = row["preference"]
        judged = preference is not None
        won = preference - 1.0 if judged else 0.0
        longer = float(len(row["output_2"]) - len(row["output_1"]))
        return {
            "win_rate": [float(judged), won],
            "lc_win_rate": [float(judged), won, longer if judged else 0.0],
            "judge_failed": float(not judged),
            "judge_tokens": row["tokens"],
        }

    def _baseline(self, problem: Problem) -> str:
        if self._outputs is not None:
            found = self._outputs.get(problem.prompt)
        else:
            found = problem.meta.get("output", problem.meta.get("baseline_output"))
        if not isinstance(found, str):
            raise BadInput(
                f"there is no baseline answer to problem {problem.id!r}; give metric.baseline=<file> with "
                f"rows of instruction and output"
            )
        return found

    async def close(self) -> None:
        """Nothing is held."""


def _outputs(path: str) -> dict[str, Any]:
    rows = read(Path(path), "metric.baseline")
    return {str(row.get("instruction", row.get("prompt"))): row.get("output") for row in rows}
