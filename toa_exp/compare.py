"""Methods side by side at equal compute, problem by problem, with paired intervals."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from toa_exp.errors import BadInput, choose
from toa_exp.figures import chosen_metric, signature, title
from toa_exp.figures import lines as lines_of
from toa_exp.results import AXES, Run, Table, estimate, find_tasks, gather
from toa_exp.stats import interval, resamples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """`method` at a budget against `other` at the same compute.

    `y` and `other_y` are the metric of each at compute `x` (mean a problem), `difference` is their
    difference with the bounds of its 95 % interval. The other's value lies between its two nearest
    budgets, linearly in log compute; where `x` is outside of what it was run at, its fields are None.
    Both are over the seeds that both were run with, `seeds` in number.
    """

    task: str
    method: str
    budget: float
    x: float
    y: float
    other: str
    other_y: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    problems: int
    seeds: int


def compare(folder: Path, method: str, x: str, y: str | None) -> tuple[list[Comparison], list[str]]:
    """Compare a method with all others below a folder, task by task, at each of its budgets.

    `method` is the title of a curve in the figures. Every resample of problems is the same for all
    curves (the comparison is paired), and both x and y are estimated anew in it. Returns the rows and
    a signature for each task. Raises BadInput where there is nothing to compare.
    """
    if x not in AXES:
        raise choose("x", x, AXES)
    tasks = find_tasks(folder)
    rows, made = [], []
    for task, runs in tasks.items():
        metric = chosen_metric(task, runs, y)
        drawn = lines_of(runs, x, metric)
        titles = [title(line, drawn) for line in drawn]
        if method not in titles:
            raise choose(f"method for task {task}", method, titles)
        if len(titles) < 2:
            raise BadInput(f"task {task} has runs of {method} alone; run another method to compare it with")
        runs_of = {name: line.runs for name, line in zip(titles, drawn, strict=True)}
        for name in titles:
            if name != method:
                rows += _compare(task, method, name, runs_of, x, metric)
        made.append(signature(drawn, x=x, y=metric, interpolation="log x", paired="by problem"))
    return rows, made


class _Curve:
    """A curve's tables by budget, and what they say of the problems picked from them."""

    def __init__(self, runs: Sequence[Run], x: str, y: str) -> None:
        self.tables: dict[float, Table] = gather(runs, x, y)
        self._pool = runs[0].pools.get(y)

    @property
    def problems(self) -> Sequence[str]:
        return next(iter(self.tables.values())).problems

    def answered(self) -> NDArray[np.bool_]:
        """Of each problem whether it has an answer at every budget."""
        import numpy as np

        found = np.ones(len(self.problems), dtype=np.bool_)
        for each in self.tables.values():
            found &= each.rows[:, 0] > 0
        return found

    def at(self, budget: float, chosen: NDArray[np.int64]) -> tuple[float, float]:
        """x and y at a budget over the chosen rows."""
        return estimate(self.tables[budget].rows[chosen], self._pool)

    def points(self, chosen: NDArray[np.int64]) -> list[tuple[float, float]]:
        """x and y at every budget, by rising x."""
        found = sorted(self.at(budget, chosen) for budget in self.tables)
        if found[0][0] <= 0.0:
            raise BadInput(
                "a curve has points that cost nothing on this axis; choose another x, such as flops"
            )
        return found


def _compare(
    task: str, method: str, name: str, runs: Mapping[str, Sequence[Run]], x: str, y: str
) -> list[Comparison]:
    import numpy as np

    seeds = {run.seed for run in runs[method]} & {run.seed for run in runs[name]}
    if not seeds:
        raise BadInput(
            f"{method} and {name} were run with no seed in common on task {task}; rerun one of them"
        )
    own, other = (_Curve([r for r in runs[which] if r.seed in seeds], x, y) for which in (method, name))
    if own.problems != other.problems:
        raise BadInput(
            f"{method} and {name} were run on different problems of task {task}: they cannot be compared"
        )
    usable = np.flatnonzero(own.answered() & other.answered())
    if not len(usable):
        raise BadInput(f"{method} and {name} have no problem of task {task} answered in common")
    samples = [usable[chosen] for chosen in resamples(len(usable))]
    resampled = [other.points(chosen) for chosen in samples]
    rows = []
    for budget in own.tables:
        at, value = own.at(budget, usable)
        there = _read(other.points(usable), at)
        found: tuple[float | None, float | None, float | None] = (None, None, None)
        if there is not None:
            differences = []
            for chosen, points in zip(samples, resampled, strict=True):
                compute, reached = own.at(budget, chosen)
                differences.append(reached - _clamped(points, compute))
            lower, upper = interval(np.array(differences))
            found = value - there, float(lower), float(upper)
        row = Comparison(task, method, budget, at, value, name, there, *found, len(usable), len(seeds))
        rows.append(row)
    return rows


def _read(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value of a curve at `x`; None outside of it."""
    return _clamped(points, x) if points[0][0] <= x <= points[-1][0] else None


def _clamped(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x`, linear in log x between two points; beyond the ends that of the end."""
    import numpy as np

    return float(np.interp(np.log(x), np.log([p[0] for p in points]), [p[1] for p in points]))


def table(rows: Sequence[Comparison]) -> str:
    """The comparison as text; an interval that excludes 0 is marked with a star."""
    heads = ["task", "method", "budget", "seeds", "compute", "value", "against", "value", "difference [95 %]"]
    lines = [heads]
    for row in rows:
        shown = "-", "not run at this compute"
        if row.other_y is not None and row.lower is not None and row.upper is not None:
            star = " *" if row.lower > 0 or row.upper < 0 else ""
            span = f"{row.difference:+.4g} [{row.lower:+.4g}, {row.upper:+.4g}]{star}"
            shown = f"{row.other_y:.4g}", span
        own = f"{row.budget:g}", str(row.seeds), f"{row.x:.3g}", f"{row.y:.4g}"
        lines.append([row.task, row.method, *own, row.other, *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(path: Path, rows: Sequence[Comparison]) -> None:
    """Write the comparison as CSV; what could not be compared is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(Comparison)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
