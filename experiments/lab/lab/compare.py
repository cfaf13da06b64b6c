"""Paired comparison of one method with the others at equal FLOPs, from the rows of `measure`.

python -m lab.compare results.json
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

Row = dict[str, Any]


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def at_flops(rows: list[Row], flops: float, metric: str) -> list[float] | None:
    """Per problem the metric at a mean cost, linear between the two nearest budgets; None outside."""
    points = sorted(((mean(row["flops"]), row[metric]) for row in rows), key=lambda point: point[0])
    for (low, below), (high, above) in pairwise(points):
        if low <= flops <= high:
            weight = (flops - low) / (high - low)
            return [b + weight * (a - b) for b, a in zip(below, above, strict=True)]
    return None


def interval(differences: list[float], seed: int = 0, rounds: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean by the bootstrap over problems."""
    rng = Random(seed)
    means = sorted(mean(rng.choices(differences, k=len(differences))) for _ in range(rounds))
    return means[int(0.025 * rounds)], means[int(0.975 * rounds)]


def compare(rows: list[Row], method: str, metric: str) -> list[str]:
    """A line for each budget of `method` and each other method: the paired difference at equal FLOPs."""
    lines = []
    others = list(dict.fromkeys(row["method"] for row in rows if row["method"] != method))
    for row in (row for row in rows if row["method"] == method):
        flops = mean(row["flops"])
        for other in others:
            given = at_flops([r for r in rows if r["method"] == other], flops, metric)
            if given is None:
                continue
            low, high = interval([a - b for a, b in zip(row[metric], given, strict=True)])
            lines.append(
                f"{method} N={row['budget']} {mean(row[metric]):.3f} at {flops / 1e9:.2f} GFLOP, "
                f"{other} {mean(given):.3f}: {mean(row[metric]) - mean(given):+.3f} [{low:+.3f}, {high:+.3f}]"
            )
    return lines


def main() -> None:
    """Print the comparison; rows of several files (seeds) are pooled problem by problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--method", default="toa")
    parser.add_argument("--metric", default="accuracy")
    arguments = parser.parse_args()
    pooled: dict[tuple[str, int], Row] = {}
    for path in arguments.files:
        for row in json.loads(path.read_text())["rows"]:
            key = (row["method"], row["budget"])
            kept = pooled.setdefault(key, {**row, "flops": [], arguments.metric: []})
            kept["flops"] = kept["flops"] + row["flops"]
            kept[arguments.metric] = kept[arguments.metric] + row[arguments.metric]
    for line in compare(list(pooled.values()), arguments.method, arguments.metric):
        print(line)


if __name__ == "__main__":
    main()
