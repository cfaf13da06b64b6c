"""Where tree search starts to beat simpler methods at equal FLOPs, as problems get longer.

For each number of parts of a problem (the dial) TOA is compared with parallel sampling and with sequential
refinement at the compute of its own budget. Runs go below results/lab_crossing, the figure into figures/
there; rerun to go on.

    python experiments/lab/crossing.py --problems 100
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from toa_exp.compare import Comparison, compare

TASK_SEED = 261127182


def run(parts: int, options: argparse.Namespace) -> Path:
    """Run the methods at one setting of the dial; returns the folder of the runs."""
    name = f"crossing-{parts}"
    common = [
        f"experiment={name}",
        "task=lab_math",
        "ensemble=lab",
        f"task.parts={parts}",
        f"task.problems={options.problems}",
        f"task.seed={TASK_SEED}",
        f"results={options.results}/lab_crossing",
        "tracking.mode=disabled",
        f"seed={','.join(map(str, options.seeds))}",
    ]
    budget = options.budget
    toa = ["method=toa", f"budget.samples=[{budget}]"]
    parallel = ["method=parallel", f"budget.samples=[{budget // 2},{budget},{2 * budget}]"]
    sequential = ["method=sequential", f"budget.samples=[{budget // 2},{budget}]"]
    for method in (toa, parallel, sequential):  # all draw from one store: their first samples are the same
        subprocess.run([sys.executable, "-m", "toa_exp", "run", "-m", *common, *method], check=True)
    return Path(options.results) / "lab_crossing" / name


def draw(rows: list[tuple[int, Comparison]], made: str, stem: Path) -> None:
    """The differences against the dial, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.0, color="#7f7f7f", linewidth=0.7)
    for number, other in enumerate(dict.fromkeys(row.other for _, row in rows)):
        points = [(parts, row) for parts, row in rows if row.other == other and row.difference is not None]
        dial = [parts + 0.06 * number for parts, _ in points]  # beside each other
        differences = [row.difference or 0.0 for _, row in points]
        below = [(row.difference or 0.0) - (row.lower or 0.0) for _, row in points]
        above = [(row.upper or 0.0) - (row.difference or 0.0) for _, row in points]
        axes.errorbar(dial, differences, (below, above), marker="o", capsize=2, linewidth=1.2, label=other)
    axes.legend(title="minus", frameon=False)
    axes.set_xlabel("Parts of a problem")
    axes.set_ylabel("Accuracy: TOA minus another\nmethod, at equal FLOPs")
    figure.supxlabel(wrapped(made), fontsize=4, color="#7f7f7f")
    for ending in ("png", "svg"):
        metadata = {} if ending == "png" else {"Date": None}
        figure.savefig(stem.with_suffix(f".{ending}"), dpi=200, metadata=metadata)


def wrapped(signature: str) -> str:
    """The signature in lines, broken between its fields."""
    lines = [""]
    for field in signature.split("|"):
        if lines[-1] and len(lines[-1]) + len(field) > 120:
            lines.append("")
        lines[-1] += f"{field}|"
    return "\n".join(lines).rstrip("|")


def main() -> None:
    """Run, compare, write crossing.csv and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--budget", type=int, default=32, help="TOA's, in samples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", default="results")
    options = parser.parse_args()
    rows: list[tuple[int, Comparison]] = []
    made = ""
    for parts in options.parts:
        compared, (made,) = compare(run(parts, options), "toa", "flops", "accuracy")
        rows += [(parts, row) for row in compared]
    made = made.replace(f"crossing-{options.parts[-1]}", "crossing-<parts>")
    out = Path(options.results) / "lab_crossing" / "figures"
    out.mkdir(parents=True, exist_ok=True)
    with (out / "crossing.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["parts", *asdict(rows[0][1])])
        writer.writerows([parts, *asdict(row).values()] for parts, row in rows)
    draw(rows, made, out / "crossing")
    for parts, row in rows:
        shown = "not run at this compute"
        if row.difference is not None:
            shown = f"{row.difference:+.3f} [{row.lower:+.3f}, {row.upper:+.3f}]"
        print(f"parts {parts}: toa {row.y:.3f} at {row.x:.3g} FLOPs, over {row.other} {shown}")
    print(made)


if __name__ == "__main__":
    main()
