"""How many problems are open at once decides nothing but the time that a run of the lab takes."""

from pathlib import Path

from helpers import cli, decisions, lines


def test_one_problem_at_a_time_and_all_at_once_give_the_same_trajectories(tmp_path: Path) -> None:
    made = []
    for concurrency in (1, 64):
        folder = tmp_path / str(concurrency)
        run = cli(
            "run", "task=lab_math", "task.parts=2", "task.problems=4", "ensemble=lab", "method=toa",
            "budget.samples=[6]", "tracking.mode=disabled", f"concurrency={concurrency}",
            f"results={folder}", f"store.path={folder}.sqlite", cwd=tmp_path,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        [path] = folder.rglob("trajectories.jsonl")
        made.append([decisions(line) for line in lines(path.read_text())])
    assert len(made[0]) == 4
    assert made[0] == made[1]
