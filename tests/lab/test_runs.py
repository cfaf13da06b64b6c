"""Runs of the lab's models from the command line."""

import csv
import shutil
from pathlib import Path

import pytest
from helpers import cli, decisions, lines

from toa_exp.labels import LAB_WEIGHTS

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


def test_another_task_is_told_what_the_labs_models_answer(tmp_path: Path) -> None:
    run = cli("run", "task=simulated", "ensemble=lab", "method=toa", cwd=tmp_path)
    assert run.returncode == 2
    assert "choose task=lab_math" in run.stderr


def test_simulated_agents_are_not_asked_the_labs_problems(tmp_path: Path) -> None:
    run = cli("run", "task=lab_math", "method=toa", cwd=tmp_path)
    assert run.returncode == 2
    assert "ensemble=lab" in run.stderr


def test_a_classifier_of_the_wrong_kind_is_no_reward(tmp_path: Path) -> None:
    run = cli("run", *SMALL[1:], "task=lab_instructions", "ensemble=lab", "reward=lab_judge", cwd=tmp_path)
    assert run.returncode == 2
    assert "LlamaForTokenClassification" in run.stderr and "reward=process" in run.stderr


def test_a_judge_that_is_not_there_is_called_the_judge(tmp_path: Path) -> None:
    shutil.copytree(LAB_WEIGHTS / "instructions", tmp_path / "mine" / "instructions")
    shutil.rmtree(tmp_path / "mine" / "instructions" / "judge")
    run = cli(
        "run", *SMALL[1:], "task=lab_instructions", "ensemble=lab", "ensemble.weights=mine", cwd=tmp_path
    )
    assert run.returncode == 2
    assert "task.judge" in run.stderr and "mine/instructions/judge" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "to=models", "effort=0"], "effort=0"),
        (["train", "to=models", "effort=x"], "effort=x"),
        (["card", "task.problems=0"], "task.problems=0"),
        (["card", "weights=nowhere"], "nowhere/math/ada"),
    ],
)
def test_bad_input_of_the_lab_is_told_once(arguments: list[str], message: str, tmp_path: Path) -> None:
    made = cli("lab", *arguments, "task=lab_math", cwd=tmp_path)
    assert made.returncode == 2
    assert made.stderr.count(message) == 1 and len(made.stderr.splitlines()) == 1


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    run = cli("run", *SMALL[1:], "task=lab_math", "ensemble=lab", "ensemble.weights=nowhere", cwd=tmp_path)
    assert run.returncode == 2
    assert "nowhere/math" in run.stderr


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    made = cli("lab", "train", "task=lab_math", "to=models", "device=cuda:99", cwd=tmp_path)
    assert made.returncode == 2
    assert "cuda:99" in made.stderr and "device=cpu" in made.stderr
