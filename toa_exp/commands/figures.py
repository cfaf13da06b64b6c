"""Draw the scaling curves of all runs below a folder: toa-exp figures <folder> x=flops y=accuracy.

Each figure is written as PNG, SVG and PDF with a signature of how it was made. Seeds of one method
are averaged problem by problem; bands are 95 % bootstrap intervals over problems.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from toa_exp.app import launch, positional
from toa_exp.figures import figures


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_figures, "figures", positional(arguments, "folder"), "figures")


def _figures(config: DictConfig) -> None:
    out = None if config.out is None else Path(config.out)
    for path in figures(Path(config.folder), config.x, config.y, out):
        print(path)
