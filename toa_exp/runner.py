"""The runner: keeps many problems open at once and writes their trajectories in order."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from toa_exp.aio import in_order
from toa_exp.budgets import Budgets
from toa_exp.core import Problem
from toa_exp.cost import Cost
from toa_exp.errors import Unavailable
from toa_exp.metrics.base import Metric
from toa_exp.selection import Selection, pick
from toa_exp.tasks.base import Task
from toa_exp.trajectory import Player, Step

log = logging.getLogger(__name__)

_AHEAD = 2048  # problems that are begun while one before them is slow


@dataclass(frozen=True, slots=True)
class Outcome:
    """A problem at one budget: the line of trajectories.jsonl.

    `answer` is the index of the selected sample; without one (no sample, or all failed) there are
    no metrics and no `best_reward`.
    """

    problem: str
    budget: float
    steps: list[Step]
    answer: int | None
    metrics: dict[str, Metric] | None
    cost: Cost
    best_reward: float | None

    def line(self) -> str:
        """The outcome as JSON; numbers are finite."""
        record: dict[str, Any] = {
            "problem": self.problem,
            "budget": self.budget,
            "samples": [step.record() for step in self.steps],
            "answer": self.answer,
            "metrics": self.metrics,
            "cost": self.cost.record(),
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False)


class Observer(Protocol):
    """Is told of a run's progress."""

    def outcomes(self, outcomes: list[Outcome]) -> None:
        """A problem is done: its outcomes at all budgets, in the order of the problems."""

    def parked(self, problem: str, reason: str) -> None:
        """A problem is given up for now; rerunning the command tries it again."""


Result = list[Outcome] | Unavailable
"""The outcomes of a problem at all budgets, or why it has none for now."""


class Runner:
    """Runs a method on all problems of a task.

    Up to `concurrency` problems are open; each waits for its own samples only. Memory grows with the open
    problems, and those that are done before one that is not, not with the task.
    """

    def __init__(
        self,
        task: Task,
        player: Player,
        budgets: Budgets,
        selection: Selection,
        *,
        anytime: bool,
        concurrency: int,
    ) -> None:
        self._task = task
        self._player = player
        self._budgets = budgets
        self._selection = selection
        self._anytime = anytime
        self._concurrency = concurrency

    async def run(self, path: Path, observer: Observer) -> None:
        """Write a line a problem and budget to `path`, in the order of the problems."""
        with path.open("w", encoding="utf-8") as file:
            await self.solve(self._task.problems(), partial(write, file, observer))

    async def solve(self, problems: Iterable[Problem], done: Callable[[Problem, Result], None]) -> None:
        """Call `done` with what came of each problem, in the order given."""
        await in_order(problems, self._result, done, self._concurrency, ahead=_AHEAD)

    async def _result(self, problem: Problem) -> Result:
        try:
            return await self._solve(problem)
        except Unavailable as error:
            return error

    async def _solve(self, problem: Problem) -> list[Outcome]:
        readings = await self._budgets.readings(self._player, problem, self._anytime)
        pairs = zip(self._budgets.values, readings, strict=True)
        return [await self._outcome(problem, budget, steps) for budget, steps in pairs]

    async def _outcome(self, problem: Problem, budget: float, steps: list[Step]) -> Outcome:
        cost = Cost()
        for step in steps:
            cost.add(step.cost)
        replies = [step.reply for step in steps]
        answer = await pick(self._selection, replies, self._task)
        metrics = None
        if answer is not None:
            metrics = dict(await self._task.score(problem, replies[answer].text))
        rewards = [reply.reward for reply in replies if reply.failure is None]
        return Outcome(problem.id, budget, steps, answer, metrics, cost, max(rewards, default=None))


def write(file: TextIO, observer: Observer, problem: Problem, result: Result) -> None:
    """Write the lines of a problem, and tell the observer."""
    if isinstance(result, Unavailable):
        observer.parked(problem.id, str(result))
    else:
        file.writelines(outcome.line() + "\n" for outcome in result)
        observer.outcomes(result)
