"""What the last doublings of its samples gain an agent alone: where a curve levels off.

Of every ensemble below a folder of TOA's runs, the gain from each budget to the next, paired by problem.
Writes figures/doublings.csv there.

    python experiments/lab/doublings.py results/lab_alone
"""

from __future__ import annotations

import argparse
import csv
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toa_exp.figures import chosen_metric, lines, signature
from toa_exp.metrics.pooled import Pool
from toa_exp.results import estimate, find_tasks, gather
from toa_exp.stats import bootstrap


def gains(folder: Path) -> tuple[list[dict[str, object]], list[str]]:
    """A row for each task, ensemble and pair of neighbouring budgets, with 95 % intervals over problems.

    Also a signature for each task.
    """
    rows: list[dict[str, object]] = []
    made = []
    for task, runs in find_tasks(folder).items():
        metric = chosen_metric(task, runs, None)
        pool = runs[0].pools.get(metric)
        runs = [run for run in runs if run.labels["method"] == "toa"]
        if runs:
            made.append(signature(lines(runs, "flops", metric), y=metric, paired="by problem"))
        for ensemble in dict.fromkeys(run.labels["ensemble"] for run in runs):
            own = [run for run in runs if run.labels["ensemble"] == ensemble]
            tables = gather(own, "flops", metric)
            for low, high in pairwise(sorted(tables)):
                before, after = tables[low].rows, tables[high].rows
                if not (before[:, 0].all() and after[:, 0].all()):
                    raise SystemExit(f"{task}, {ensemble}: a problem has no answer at {low:g} or {high:g}")
                gain, lower, upper = bootstrap(np.hstack((before, after)), partial(_gain, pool))
                rows.append({
                    "task": task, "metric": metric, "ensemble": ensemble, "from": low, "to": high,
                    "y": estimate(after, pool)[1], "gain": gain, "lower": lower, "upper": upper,
                    "problems": len(before), "seeds": len(own),
                })  # fmt: skip
    return rows, made


def _gain(pool: Pool | None, rows: NDArray[np.float64]) -> float:
    """`rows` are those of a budget, and beside them those of the next."""
    before, after = np.hsplit(rows, 2)
    return estimate(after, pool)[1] - estimate(before, pool)[1]


def main() -> None:
    """Print the gains and write doublings.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows, made = gains(folder)
    if not rows:
        raise SystemExit(f"{folder} has no runs of method=toa with two budgets")
    out = folder / "figures" / "doublings.csv"
    out.parent.mkdir(exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            "{task} {metric}, {ensemble}: {from:g} to {to:g} samples {gain:+.3f} "
            "[{lower:+.3f}, {upper:+.3f}] to {y:.3f} ({problems} problems, {seeds} seeds)".format(**row)
        )
    print(*made, sep="\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
