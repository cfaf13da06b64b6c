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
from toa_exp.metrics.length_control import Comparison, by_answer, instruction_number, reference_file
from toa_exp.scoring.files import read
from toa_exp.scoring.rows import unique
from toa_exp.tasks.base import Task

log = logging.getLogger(__name__)
_POOLED = "toa_exp.metrics.pooled"


@dataclass(frozen=True, slots=True)
class Answered:
    """A problem at one budget: its samples, and the index of the one that is the answer."""

    problem: Problem
    budget: float
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
    """What the run's task measures, anew: for another selection, or a judge that has changed.

    `name` is a metric that is to be among them.
    """

    needs: tuple[str, ...] = ("task",)

    def __init__(self, *, task: Task, name: str | None = None) -> None:
        self._task = task
        self._name = name

    @property
    def pools(self) -> Mapping[str, str]:
        """The task's."""
        return dict(getattr(self._task, "pools", {}))

    def fingerprint(self) -> Mapping[str, Any]:
        """The task's."""
        return self._task.fingerprint()

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The task's metrics of each answer; raises BadInput where `name` is none of them."""
        found: list[Mapping[str, Metric]] = [
            dict(await self._task.score(answered.problem, answered.text)) for answered in answers
        ]
        if self._name is not None and self._name not in found[0]:
            measured = ", ".join(found[0]) or "nothing"
            raise BadInput(f"the run's task has no {self._name}; it measures {measured}")
        return found

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
    `baseline`. `win_rate` and its standard error, `win_rate_se`, are over the comparisons that the judge
    decided, `judge_failed` is the share of the others, and `judge_tokens` what a comparison took: it is
    no part of the run's cost. `lc_win_rate` is that of AlpacaEval's regression, as `toa-exp score` has
    it, whose files are in the folder `references` or on the hub. Where they are out of reach, or
    instructions are not AlpacaEval's, there is `lc_win_rate_own` instead, which controls for length by
    the answers of this run alone: the two are not comparable.
    """

    needs: tuple[str, ...] = ("judge",)
    either = ("lc_win_rate", "lc_win_rate_own")

    def __init__(
        self, *, judge: WeightedJudge, baseline: str | None = None, references: str | None = None
    ) -> None:
        self._judge = judge
        self._baseline_file = baseline
        self._outputs = None if baseline is None else _outputs(baseline)
        self._references = None if references is None else Path(references).expanduser()
        if self._references is not None:
            reference_file(self._references)
        self._compared: dict[tuple[str, str], dict[str, Any]] = {}
        self._controlled: Mapping[str, object] = {}
        self.pools: Mapping[str, str] = {
            "win_rate": f"{_POOLED}.judged_win_rate",
            "win_rate_se": f"{_POOLED}.judged_standard_error",
        }

    def fingerprint(self) -> Mapping[str, Any]:
        """The judge, the baseline's file, and once measured how length is controlled for."""
        made = {"lc_win_rate": dict(self._controlled)} if self._controlled else {}
        return {**self._judge.fingerprint(), "baseline": self._baseline_file, **made}

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The statistics of each comparison."""
        gamed = self._gamed(answers)
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
        controlled = _own(rows) if gamed is None else self._official(answers, rows, gamed)
        name = "lc_win_rate_own" if gamed is None else "lc_win_rate"
        pool = "lc_win_rate_of_judged" if gamed is None else "judged_mean"
        self.pools = {**self.pools, name: f"{_POOLED}.{pool}"}
        return [
            {**self._statistics(row), name: statistics}
            for row, statistics in zip(rows, controlled, strict=True)
        ]

    def _gamed(self, answers: Sequence[Answered]) -> Path | None:
        """The file of AlpacaEval's regression; None, with a warning, where it cannot be used."""
        strangers = [a.problem.id for a in answers if instruction_number(a.problem.prompt) is None]
        try:
            if strangers:
                raise BadInput(
                    f"problem {strangers[0]!r} is none of AlpacaEval's, so its difficulty is unknown"
                )
            return reference_file(self._references)
        except BadInput as error:
            log.warning(
                "no lc_win_rate; lc_win_rate_own controls for length by these answers alone, and is not "
                "comparable with AlpacaEval's. %s",
                str(error).replace("references=", "metric.references="),
            )
            return None

    def _official(
        self, answers: Sequence[Answered], rows: Sequence[Mapping[str, Any]], gamed: Path
    ) -> list[list[float]]:
        """Whether there is a length-controlled rate (1 or 0), and the answer's part in it; by budget."""
        found: list[list[float]] = [[0.0, 0.0]] * len(rows)
        for budget in dict.fromkeys(answered.budget for answered in answers):
            places = [place for place, answered in enumerate(answers) if answered.budget == budget]
            try:
                values, self._controlled = by_answer([_comparison(rows[place]) for place in places], gamed)
            except BadInput as error:
                log.warning("no lc_win_rate at budget %g: %s", budget, error)
                continue
            for place, value in zip(places, values, strict=True):
                found[place] = [1.0, float(value)]
        return found

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
        return {
            "win_rate": [float(judged), won],
            "win_rate_se": [float(judged), won],
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


def _comparison(row: Mapping[str, Any]) -> Comparison:
    number = instruction_number(row["instruction"])
    assert number is not None
    return Comparison(number, len(row["output_1"]), len(row["output_2"]), row["preference"])


def _own(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The statistics of pooled.lc_win_rate_of_judged: judged, won, and how much longer the answer is."""
    found = []
    for row in rows:
        longer = float(len(row["output_2"]) - len(row["output_1"]))
        judged = row["preference"] is not None
        found.append([1.0, row["preference"] - 1.0, longer] if judged else [0.0, 0.0, 0.0])
    return found


def _outputs(path: str) -> dict[str, Any]:
    rows = read(Path(path), "metric.baseline")
    instructions = [str(row.get("instruction", row.get("prompt"))) for row in rows]
    unique(instructions, f"metric.baseline={path}: instruction")
    return {one: row.get("output") for one, row in zip(instructions, rows, strict=True)}
