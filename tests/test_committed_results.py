"""Figures and comparisons follow from the committed results, and so do the numbers that pages print."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toa_exp.compare import compare, write
from toa_exp.figures import chosen_metric, figures
from toa_exp.results import estimate, find_runs, gather

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
REFERENCE = RESULTS / "lab_reference"
PAGES = [ROOT / "README.md", ROOT / "experiments" / "lab" / "README.md"]
TASKS = {"mathematics": "lab_math", "translation": "lab_translation", "writing": "lab_instructions"}
DECIMALS = {"mathematics": 3, "translation": 2, "writing": 1}  # of differences on the pages
OTHERS = ("ben", "cleo", "dan")
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
            printed = ["{:+.{}f}".format(number, DECIMALS[task]) for number in numbers]
            assert re.findall(r"[+-][0-9.]+", cell) == printed, (task, method, cells[1])
            assert cell.startswith("**") == (numbers[1] > 0 or numbers[2] < 0)
            checked += 1
    assert checked >= 15


def prose(page):
    return " ".join(page.read_text().split())


def mean(task, method, budget):
    """A curve's value over the seeds at a budget."""
    runs = [run for run in find_runs(REFERENCE / TASKS[task]) if run.labels["method"] == method]
    return value(task, runs, budget)[1]


def value(task, runs, budget=None):
    """The budget, by default the largest, and the value of these runs there as pages print it."""
    metric = chosen_metric(TASKS[task], runs, None)
    read = gather(runs, "flops", metric)
    budget = budget or max(read)
    found = estimate(read[budget].rows, runs[0].pools.get(metric))[1]
    return budget, "{:.{}f}".format(found, 3 if task == "mathematics" else 1)


@pytest.mark.parametrize("task", TASKS)
def test_what_the_page_says_of_64_samples_without_refinement_is_what_was_found(task):
    ensemble = mean(task, "parallel", 64.0)
    alone = [mean(task, method, 64.0) for method in ("random", *(f"random,agent={n}" for n in OTHERS))]
    said = " against {}, {}, {} and {}".format(*alone)
    assert re.search(rf"{ensemble}( is)?{said}", prose(PAGES[1]))


def test_the_table_of_agents_alone_is_that_of_the_comparison():
    with (RESULTS / "lab_alone" / "figures" / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if float(row["budget"]) == 32.0]
    for task, name in TASKS.items():
        cells = [
            "{:+.{d}f}** [{:+.{d}f}, {:+.{d}f}]".format(
                *(float(row[key]) for key in ("difference", "lower", "upper")), d=DECIMALS[task]
            )
            for row in rows
            if row["task"] == name
        ]
        assert len(cells) == 4
        alone = [value(task, find_runs(RESULTS / "lab_alone" / name / agent)) for agent in ("ada", *OTHERS)]
        (most,) = {budget for budget, _ in alone}
        last = f"{', '.join(printed for _, printed in alone)} ({most:g})"
        assert f"{' | **'.join(cells)} | {last} |" in PAGES[1].read_text()


def test_what_the_page_says_of_the_last_doubling_is_what_was_found():
    with (RESULTS / "lab_alone" / "figures" / "doublings.csv").open() as file:
        last = [row for row in csv.DictReader(file) if (row["from"], row["to"]) == ("64.0", "128.0")]
    for task, words in {
        "mathematics": "{:+.2f} to {:+.2f} in mathematics",
        "translation": "{:+.2f} to {:+.2f} BLEU in translation",
        "writing": "{:+.1f} to {:+.1f} points of win rate in writing",
    }.items():
        found = [float(row["gain"]) for row in last if row["task"] == TASKS[task]]
        assert len(found) == 4
        assert words.format(min(found), max(found)) in prose(PAGES[1])


@pytest.mark.slow
def test_the_doublings_follow_from_the_outcomes(tmp_path):
    shutil.copytree(RESULTS / "lab_alone" / "lab_math", tmp_path / "lab_alone" / "lab_math")
    script = ROOT / "experiments" / "lab" / "doublings.py"
    subprocess.run([sys.executable, script, tmp_path / "lab_alone"], check=True)
    made = (tmp_path / "lab_alone" / "figures" / "doublings.csv").read_text().splitlines()
    committed = (RESULTS / "lab_alone" / "figures" / "doublings.csv").read_text().splitlines()
    assert made == [committed[0], *(line for line in committed if line.startswith("lab_math,"))]


def test_the_table_of_the_crossing_is_that_of_the_study():
    with (RESULTS / "lab_crossing" / "figures" / "crossing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["other"] for row in rows} == {"parallel", "sequential"}
    for parts in dict.fromkeys(row["parts"] for row in rows):
        ours = sorted((row for row in rows if row["parts"] == parts), key=lambda row: row["other"])
        cells = [parts, f"{float(ours[0]['y']):.3f}"]
        for row in ours:
            low, high = float(row["lower"]), float(row["upper"])
            difference = f"{float(row['difference']):+.3f}"
            shown = f"**{difference}**" if low > 0 or high < 0 else difference
            cells.append(f"{shown} [{low:+.3f}, {high:+.3f}]")
        assert f"| {' | '.join(cells)} |" in PAGES[1].read_text()
