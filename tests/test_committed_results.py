"""Figures and comparisons follow from the committed results, and so do the numbers that pages print."""

import csv
import re
from pathlib import Path

import pytest

from toa_exp.compare import compare, write
from toa_exp.figures import figures

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "lab_reference"
PAGES = [ROOT / "README.md", ROOT / "experiments" / "lab" / "README.md"]
TASKS = {"mathematics": "lab_math", "translation": "lab_translation", "writing": "lab_instructions"}
METRICS = {"mathematics": 3, "translation": 1, "writing": 1}  # decimals that the pages print
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="not in a checkout")


@pytest.mark.slow
def test_the_comparison_follows_from_the_outcomes(tmp_path):
    rows, _ = compare(REFERENCE, "toa", "flops", None)
    write(tmp_path / "comparison.csv", rows)
    expected = (REFERENCE / "figures" / "comparison.csv").read_bytes()
    assert (tmp_path / "comparison.csv").read_bytes() == expected


@pytest.mark.slow
def test_the_figures_follow_from_the_outcomes(tmp_path):
    for path in figures(REFERENCE, "flops", None, tmp_path):
        if path.suffix == ".svg":
            assert path.read_bytes() == (REFERENCE / "figures" / path.name).read_bytes()


def compared():
    with (REFERENCE / "figures" / "comparison.csv").open() as file:
        return {(row["task"], row["other"], float(row["budget"])): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_table_of_differences_is_that_of_the_comparison(page):
    found = compared()
    checked = 0
    heads = []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "minus sequential" in cells:
            heads = [cell.removeprefix("minus ") for cell in cells]
        if not heads or len(cells) != len(heads) or cells[0].split(",")[0] not in TASKS:
            continue
        task = cells[0].split(",")[0]
        for method, cell in zip(heads[4:], cells[4:], strict=True):
            row = found[TASKS[task], method, float(cells[1])]
            numbers = [float(row[name]) for name in ("difference", "lower", "upper")]
            printed = ["{:+.{}f}".format(number, METRICS[task]) for number in numbers]
            assert re.findall(r"[+-][0-9.]+", cell) == printed, (task, method, cells[1])
            assert cell.startswith("**") == (numbers[1] > 0 or numbers[2] < 0)
            checked += 1
    assert checked >= 15
