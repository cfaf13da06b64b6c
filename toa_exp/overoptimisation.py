"""Over-optimisation: does what a reward selects go on getting better by a gold measure as n grows?

Gao et al. 2023 (arXiv 2210.10760): the selecting reward (the proxy) of best-of-n rises for ever, the
gold measure may turn down. And calibration: the gold measure of samples by quantile of the proxy.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from toa_exp.errors import BadInput, choose
from toa_exp.figures import Line
from toa_exp.gold import Choice, Judged
from toa_exp.metrics.pooled import Pool
from toa_exp.stats import interval, resamples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AXES = ["samples", "tokens", "flops", "kl"]
"""kl is that of best-of-n from the policy in nats, log n - (n - 1) / n (Stiennon et al. 2020)."""


@dataclass(frozen=True, slots=True)
class Point:
    """A curve at one n: mean proxy and gold over `problems`, with 95 % intervals over problems."""

    task: str
    curve: str
    n: float
    x: float
    problems: int
    proxy: float
    proxy_lo: float
    proxy_hi: float
    gold: float
    gold_lo: float
    gold_hi: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples of one quantile of the proxy: means of proxy and gold, with the interval of gold."""

    task: str
    curve: str
    quantile: int
    samples: int
    proxy: float
    gold: float
    gold_lo: float
    gold_hi: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Where the gold measure is best, and what it loses from there to the largest n, paired by problem.

    `n` was chosen as the best of all, which makes a loss of curves that are flat. `upper` allows for
    that: the best n is chosen anew in each resample, of differences from those of all problems (White
    2000), so that of flat curves it is below 0 in 2.5 %. `lower` is that of `n` as it is.
    """

    task: str
    curve: str
    n: float
    gold: float
    last_n: float
    last_gold: float
    difference: float
    lower: float
    upper: float


def check(x: str, bins: int) -> None:
    """Raise BadInput for an axis or a number of quantiles that there is not."""
    if x not in AXES:
        raise choose("x", x, AXES)
    if bins < 1:
        raise BadInput(f"bins={bins}: give a number of quantiles, 1 or more")


class Panel:
    """The numbers of one curve: `judged` holds a list of problems for each of its seeds."""

    def __init__(
        self, task: str, curve: str, line: Line, judged: Sequence[Sequence[Judged]], pool: Pool | None
    ) -> None:
        self.task = task
        self.curve = curve
        self.line = line
        self._pool = pool
        self._judged = judged
        self._by_n: dict[float, dict[str, list[Choice]]] = {}
        for seed in judged:
            for each in seed:
                for choice in each.choices:
                    self._by_n.setdefault(choice.n, {}).setdefault(each.problem, []).append(choice)
        self._by_n = dict(sorted(self._by_n.items()))
        if not self._by_n:
            raise BadInput(f"{curve} on task {task}: no problem has an answer")

    def points(self, x: str) -> list[Point]:
        """The curve; a problem is averaged over its seeds first."""
        found = []
        for n, problems in self._by_n.items():
            table = self._table(list(problems.values()))
            proxy, gold = (self._estimate(table, which) for which in (_proxy, self._gold))
            spent = [c for choices in problems.values() for c in choices]
            at = sum(_spent(c, x) for c in spent) / len(spent)
            found.append(Point(self.task, self.curve, n, at, len(problems), *proxy, *gold))
        return found

    def turn(self) -> Turn:
        """Where gold turned down, over the problems that are answered at every n."""
        import numpy as np

        answered = set.intersection(*(set(problems) for problems in self._by_n.values()))
        if not answered:
            raise BadInput(f"{self.curve} on task {self.task}: no problem is answered at every n")
        order = sorted(answered)
        tables = {n: self._table([problems[p] for p in order]) for n, problems in self._by_n.items()}
        golds = {n: self._gold(table) for n, table in tables.items()}
        best = max(golds, key=golds.__getitem__)
        last = next(reversed(golds))
        again = np.array(
            [[self._gold(table[chosen]) for table in tables.values()] for chosen in resamples(len(order))]
        )
        again = again[~np.isnan(again).any(axis=1)]
        place = list(tables).index(best)
        difference = golds[last] - golds[best]
        if not len(again):
            return Turn(
                self.task, self.curve, best, golds[best], last, golds[last], difference, np.nan, np.nan
            )
        moved = again - np.array(list(golds.values()))
        gains = (moved - moved[:, -1:]).max(axis=1)  # of the best n over the last one, by chance alone
        low, _ = interval(again[:, -1] - again[:, place])
        _, by_chance = interval(gains)
        upper = difference + float(by_chance)
        return Turn(
            self.task, self.curve, best, golds[best], last, golds[last], difference, float(low), upper
        )

    def calibration(self, bins: int) -> list[Bin]:
        """Gold by quantile of the proxy over all judged samples; equal proxies stay together."""
        import numpy as np

        rows = [
            (problem, proxy, gold) for problem, samples in self._samples().items() for proxy, gold in samples
        ]
        if not rows:
            return []
        proxies = np.array([proxy for _, proxy, _ in rows])
        edges = np.quantile(proxies, np.linspace(0.0, 1.0, bins + 1)[1:-1])
        place = np.searchsorted(edges, proxies, side="right")
        golds = np.array([gold for *_, gold in rows])
        problems = {problem: number for number, problem in enumerate(self._samples())}
        owner = np.array([problems[problem] for problem, *_ in rows])
        found = []
        for number in range(bins):
            inside = np.flatnonzero(place == number)
            if not len(inside):
                continue
            of = [inside[owner[inside] == problem] for problem in np.unique(owner[inside])]
            table = [golds[rows_of] for rows_of in of]
            estimates = np.array(
                [self._of_rows(np.concatenate([table[p] for p in chosen])) for chosen in resamples(len(of))]
            )
            low, high = interval(estimates)
            gold = self._of_rows(golds[inside])
            mean = float(proxies[inside].mean())
            found.append(
                Bin(self.task, self.curve, number + 1, len(inside), mean, gold, float(low), float(high))
            )
        return found

    def _samples(self) -> dict[str, list[tuple[float, tuple[float, ...]]]]:
        found: dict[str, list[tuple[float, tuple[float, ...]]]] = {}
        for seed in self._judged:
            for each in seed:
                if each.samples:
                    found.setdefault(each.problem, []).extend(each.samples)
        return found

    def _table(self, problems: Sequence[Sequence[Choice]]) -> NDArray[np.float64]:
        """Proxy and gold of each problem: means over seeds, of a pooled metric's statistics sums."""
        import numpy as np

        combine = np.mean if self._pool is None else np.sum
        rows = [
            (np.mean([c.proxy for c in choices]), *combine([c.gold for c in choices], axis=0))
            for choices in problems
        ]
        return np.array(rows, dtype=np.float64)

    def _gold(self, table: NDArray[np.float64]) -> float:
        return self._of_rows(table[:, 1:])

    def _of_rows(self, golds: NDArray[np.float64]) -> float:
        return float(golds.mean()) if self._pool is None else self._pool(golds)

    def _estimate(
        self, table: NDArray[np.float64], of: Callable[[NDArray[np.float64]], float]
    ) -> tuple[float, float, float]:
        import numpy as np

        estimates = np.array([of(table[chosen]) for chosen in resamples(len(table))])
        low, high = interval(estimates)
        return float(of(table)), float(low), float(high)


def _proxy(table: NDArray[np.float64]) -> float:
    return float(table[:, 0].mean())


def _spent(choice: Choice, x: str) -> float:
    if x == "kl":
        n = choice.samples
        return math.log(n) - (n - 1) / n
    return float(getattr(choice, x))


def write(path: Path, rows: Sequence[Point] | Sequence[Bin] | Sequence[Turn], kind: type) -> None:
    """Write rows of one kind as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table(turns: Sequence[Turn]) -> str:
    """The turns as text; a loss whose interval excludes 0 is marked with a star."""
    lines = [["task", "curve", "gold is best at n", "gold", "at the largest n", "gold", "change [95 %]"]]
    for turn in turns:
        star = " * over-optimised" if turn.upper < 0 else ""
        span = f"{turn.difference:+.4g} [{turn.lower:+.4g}, {turn.upper:+.4g}]{star}"
        best, last = (f"{turn.n:g}", f"{turn.gold:.4g}"), (f"{turn.last_n:g}", f"{turn.last_gold:.4g}")
        lines.append([turn.task, turn.curve, *best, *last, span])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
