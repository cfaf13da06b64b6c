"""Runs of the lab's models from the command line."""

import csv
from pathlib import Path
from typing import Any

import pytest
from helpers import cli, lines

pytestmark = pytest.mark.slow
SMALL = ["experiment=lab", "task.problems=6", "budget.samples=[4,8]", "tracking.mode=disabled"]


def files(folder: Path) -> dict[str, object]:
    """What a study reports, by path: curves but for the seconds they took, figures and the comparison."""
    found: dict[str, object] = {}
    for path in (*folder.rglob("curve.csv"), *folder.rglob("*.svg"), *folder.rglob("comparison.csv")):
        with path.open(newline="") as file:
            rows = [{**row, "seconds": ""} for row in csv.DictReader(file)]
        found[str(path.relative_to(folder))] = rows if path.suffix == ".csv" else path.read_bytes()
    return found


@pytest.mark.parametrize("task", ["lab_math", "lab_translation", "lab_instructions"])
def test_the_figures_are_the_same_at_another_concurrency_and_on_rerun(task: str, tmp_path: Path) -> None:
    made = []
    for name, concurrency in (("wide", 64), ("narrow", 2), ("wide", 64)):
        arguments = [*SMALL, f"task={task}", f"concurrency={concurrency}", f"results={tmp_path / name}"]
        run = cli("run", *arguments, "method=moa,sequential,toa", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        folder = tmp_path / name / "lab"
        assert cli("figures", str(folder), cwd=tmp_path).returncode == 0
        compared = cli("compare", str(folder), cwd=tmp_path)
        assert compared.returncode == 0, compared.stderr
        made.append(files(folder))
    assert len(made[0]) == 3 + 1 + 1  # curves, their figure and the comparison
    assert made[0] == made[1] == made[2]


def test_agents_that_take_turns_give_the_same_trajectories(tmp_path: Path) -> None:
    arguments = [*SMALL[1:], "task=lab_math", "ensemble=lab", "method=toa"]
    made = []
    for name, more in (("together", []), ("turns", ["engine.residents=1"])):
        run = cli("run", *arguments, *more, f"results={tmp_path / name}", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert ("ada, ben, cleo, dan took turns, 1 awake at a time" in run.stdout) == (name == "turns")
        [path] = (tmp_path / name).rglob("trajectories.jsonl")
        made.append([decisions(line) for line in lines(path.read_text())])
    assert made[0] == made[1]
    [log] = (tmp_path / "turns").rglob("run.log")
    assert "swaps took" in log.read_text()


def decisions(line: dict[str, Any]) -> list[object]:
    """All of an outcome but the seconds."""
    samples = [{key: value for key, value in s.items() if key != "seconds"} for s in line["samples"]]
    return [line["problem"], line["budget"], line["answer"], line["metrics"], samples]


def test_another_task_is_told_what_the_labs_models_answer(tmp_path: Path) -> None:
    run = cli("run", "task=simulated", "ensemble=lab", "method=toa", cwd=tmp_path)
    assert run.returncode == 2
    assert "choose task=lab_math" in run.stderr


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    run = cli("run", *SMALL[1:], "task=lab_math", "ensemble=lab", "ensemble.weights=nowhere", cwd=tmp_path)
    assert run.returncode == 2
    assert "nowhere/math" in run.stderr


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    made = cli("lab", "train", "task=lab_math", "to=models", "device=cuda:99", cwd=tmp_path)
    assert made.returncode == 2
    assert "cuda:99" in made.stderr and "device=cpu" in made.stderr
