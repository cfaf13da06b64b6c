"""Where tree search starts to beat parallel sampling at equal FLOPs, as problems get longer.

For each number of parts of a problem (the dial) TOA is compared with parallel sampling at the compute of
its own budget. Runs go below results/crossing-<parts>; rerun to go on.

    python experiments/lab/crossing.py --problems 200
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

from toa_exp.compare import Comparison, compare

METHODS = ["parallel"]
TASK_SEED = 412170612


def run(parts: int, options: argparse.Namespace) -> Path:
    """Run all methods at one setting of the dial; returns the folder of the runs."""
    name = f"crossing-{parts}"
    common = [
        f"experiment={name}",
        "task=lab_math",
        "ensemble=lab",
        f"task.parts={parts}",
        f"task.problems={options.problems}",
        f"task.seed={TASK_SEED}",
        "concurrency=256",
        f"results={options.results}",
        "tracking.mode=disabled",
        f"seed={','.join(map(str, options.seeds))}",
    ]
    budget = options.budget
    toa = ["method=toa", f"budget.samples=[{budget}]"]
    others = [f"method={','.join(METHODS)}", f"budget.samples=[{budget // 2},{budget},{2 * budget}]"]
    for method in (toa, others):  # both draw from one store: their first samples are the same
        subprocess.run([sys.executable, "-m", "toa_exp", "run", "-m", *common, *method], check=True)
    return Path(options.results) / name


def draw(rows: dict[int, list[Comparison]], metric: str, made: str, stem: Path) -> None:
    """The difference to each method against the dial, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.0, color="#7f7f7f", linewidth=0.7)
    for place, method in enumerate(METHODS):
        points = [
            (parts, row)
            for parts, found in rows.items()
            for row in found
            if row.other == method and row.difference is not None
        ]
        shift = 0.08 * place
        x = [parts + shift for parts, _ in points]
        y = [row.difference or 0.0 for _, row in points]
        below = [(row.difference or 0.0) - (row.lower or 0.0) for _, row in points]
        above = [(row.upper or 0.0) - (row.difference or 0.0) for _, row in points]
        axes.errorbar(x, y, (below, above), label=f"over {method}", marker="o", capsize=2, linewidth=1.2)
    axes.set_xlabel("Parts of a problem")
    axes.set_ylabel(f"{metric}: TOA minus the other,\nat equal FLOPs")
    axes.legend(frameon=False)
    figure.supxlabel("\n".join(textwrap.wrap(made, 120, break_long_words=True)), fontsize=4, color="#7f7f7f")
    for ending in ("png", "svg"):
        figure.savefig(
            stem.with_suffix(f".{ending}"), dpi=200, metadata={} if ending == "png" else {"Date": None}
        )


def main() -> None:
    """Run, compare, write crossing.csv and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--budget", type=int, default=32, help="TOA's, in samples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", default="results")
    options = parser.parse_args()
    rows: dict[int, list[Comparison]] = {}
    made = ""
    for parts in options.parts:
        rows[parts], (made,) = compare(run(parts, options), "toa", "flops", "accuracy")
    out = Path(options.results) / "crossing"
    out.mkdir(parents=True, exist_ok=True)
    with (out / "crossing.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["parts", *asdict(rows[options.parts[0]][0])])
        writer.writerows([parts, *asdict(row).values()] for parts, found in rows.items() for row in found)
    draw(
        rows, "Accuracy", made.replace(f"crossing-{options.parts[-1]}", "crossing-<parts>"), out / "crossing"
    )
    for parts, found in rows.items():
        for row in found:
            shown = "not run at this compute"
            if row.difference is not None:
                shown = f"{row.difference:+.3f} [{row.lower:+.3f}, {row.upper:+.3f}]"
            print(f"parts {parts}: toa {row.y:.3f} at {row.x:.3g} FLOPs, over {row.other} {shown}")
    print(made)


if __name__ == "__main__":
    main()
