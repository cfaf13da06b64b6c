"""Compare a method with all others at equal compute: toa-exp compare <folder> curve=toa x=flops y=accuracy.

The difference to each other method is read at the compute of each of the method's budgets, paired by
problem, with a 95 % bootstrap interval. The table is printed and written to comparison.csv.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from toa_exp.app import launch, positional
from toa_exp.compare import compare, table, write


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_compare, "compare", positional(arguments, "folder"), "compare")


def _compare(config: DictConfig) -> None:
    folder = Path(config.folder)
    rows, signatures = compare(folder, config.curve, config.x, config.y)
    out = folder / "figures" / "comparison.csv" if config.out is None else Path(config.out)
    write(out, rows)
    print("\n".join([table(rows), *signatures, f"written to {out}"]))
