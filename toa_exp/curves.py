"""Scaling curves: means over problems at each budget, with intervals, as curve.csv."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_exp.cost import Cost
from toa_exp.errors import ToaError
from toa_exp.metrics.base import Metric
from toa_exp.metrics.pooled import Pool
from toa_exp.runner import Outcome
from toa_exp.stats import bootstrap, bootstrap_means

COSTS = ["samples", "prompt_tokens", "completion_tokens", "flops", "reward_flops", "usd", "seconds"]

Row = dict[str, Any]
"""A line of curve.csv by column; None where a value is unknown."""


class Curve:
    """Gathers the outcomes of one run, problem by problem, as columns of numbers.

    `failed` counts the problems without an answer and those that were parked; all means are over
    the others, `problems` in number. `pools` are the functions of metrics that are no mean.
    """

    def __init__(
        self, method: str, budgets: Sequence[float], pools: Mapping[str, Pool] | None = None
    ) -> None:
        self._method = method
        self._pools = pools or {}
        self._columns: dict[float, dict[str, array[float]]] = {budget: {} for budget in budgets}
        self._failed = dict.fromkeys(budgets, 0)

    def add(self, outcome: Outcome) -> None:
        """Add a problem at one budget."""
        if outcome.answer is None or outcome.best_reward is None:
            self._failed[outcome.budget] += 1
            return
        columns = self._columns[outcome.budget]
        values = self._values(outcome.cost, outcome.best_reward, outcome.metrics or {})
        if columns and columns.keys() != values.keys():
            raise ToaError(
                f"problem {outcome.problem!r} has other metrics ({', '.join(outcome.metrics or {})}) than "
                f"those before it; a task's score gives the same metrics for every problem"
            )
        for name, value in values.items():
            column = columns.setdefault(name, array("d"))
            if isinstance(value, Sequence):
                column.extend(value)
            else:
                column.append(value)

    def park(self) -> None:
        """Count a problem that has no trajectory at any budget."""
        for budget in self._failed:
            self._failed[budget] += 1

    def rows(self) -> list[Row]:
        """One row a budget; bounds are of the 95 % bootstrap interval over problems."""
        return [self._row(budget) for budget in self._columns]

    def _values(self, cost: Cost, reward: float, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        costs = {name: getattr(cost, name) for name in COSTS}
        values: dict[str, Metric] = {
            name: float("nan") if value is None else float(value) for name, value in costs.items()
        }
        return {**values, "best_reward": reward, **metrics}

    def _row(self, budget: float) -> Row:
        import numpy as np

        columns = self._columns[budget]
        row: Row = {"method": self._method, "budget": budget, "failed": self._failed[budget]}
        row["problems"] = len(columns["samples"]) if columns else 0
        if not columns:
            return row
        plain = [name for name in columns if name not in self._pools]
        table = np.column_stack([np.frombuffer(columns[name]) for name in plain])
        found = dict(zip(plain, zip(*bootstrap_means(table), strict=True), strict=True))
        for name in columns:
            if name in self._pools:
                found[name] = bootstrap(
                    np.frombuffer(columns[name]).reshape(row["problems"], -1), self._pools[name]
                )
            mean, low, high = found[name]
            row[name] = None if np.isnan(mean) else float(mean)
            if name not in COSTS:
                known = not np.isnan(low)
                row[f"{name}_lo"], row[f"{name}_hi"] = (float(low), float(high)) if known else (None, None)
        return row


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns of curve.csv in order: what every curve has, then each metric with its bounds."""
    fixed = ["method", "budget", "problems", "failed", *COSTS]
    fixed += ["best_reward", "best_reward_lo", "best_reward_hi"]
    metrics = [name for row in rows for name in row if name not in fixed]
    return [*fixed, *dict.fromkeys(metrics)]


def write_curve(path: Path, rows: Sequence[Row]) -> None:
    """Write curve.csv; unknown values are empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns_of(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The names of the columns that have an interval: best_reward and the metrics."""
    names = columns_of(rows)
    return [name for name in names if f"{name}_lo" in names]
