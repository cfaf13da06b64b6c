"""The oracle: the task's own judgement of an answer, as a reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.draws import Score
from toa_exp.errors import BadInput, choose
from toa_exp.rewards.base import Range
from toa_exp.tasks.base import Task


class Verifier:
    """1.0 for a right answer and 0.0 for a wrong one, by the metric `metric` of the task."""

    shape: Architecture | None = None
    range = Range(0.0, 1.0)
    warms_up = False  # it cannot be wrong

    def __init__(self, *, metric: str, task: Task) -> None:
        self._metric = metric
        self._task = task

    def fingerprint(self) -> Mapping[str, Any]:
        """The metric's name and what decides it in the task."""
        return {"reward": "verifier", "metric": self._metric, **self._task.fingerprint()}

    async def score(self, problem: Problem, text: str) -> Score:
        """The metric of the text; its time is not counted, since no model runs."""
        metrics = await self._task.score(problem, text)
        if self._metric not in metrics:
            raise BadInput(
                f"reward=verifier needs the metric {self._metric!r}, and the task gives "
                f"{', '.join(metrics) or 'none: its problems have no reference'}"
            )
        value = metrics[self._metric]
        if not isinstance(value, float):
            single = [name for name, other in metrics.items() if isinstance(other, float)]
            raise choose("reward.metric is of no single answer:", self._metric, single)
        return Score(value, 0, 0.0)

    async def close(self) -> None:
        """Nothing is held."""
