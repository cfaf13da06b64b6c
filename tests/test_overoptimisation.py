"""The over-optimisation panel, on runs whose reward is hacked by design.

Every sample has a number u, uniform in [0, 1], that the reward reads; it is right where 0.3 < u < 0.95.
The best of n has the largest u, so it is right with probability 0.95^n - 0.3^n: at most 0.81, at n = 4.
"""

import csv
import json
import math
from pathlib import Path

import pytest
from helpers import cli

DESIGNED = """
from random import Random
from toa_exp.core import Usage
from toa_exp.draws import Sample, Score

class Engine:
    def __init__(self, agents):
        self.agents = agents
    async def sample(self, draw):
        u = Random(draw.key).random()
        answer = draw.problem.reference if 0.3 < u < 0.95 else "wrong"
        return Sample(f"u={u:.6f}\\nAnswer: {answer}", Usage(10, 5), 0.1)
    async def close(self):
        pass

class Reads:
    shape = None
    def __init__(self, *, held_out=False, task=None):
        self._held_out = held_out
    def fingerprint(self):
        return {"reward": "reads", "held_out": self._held_out}
    async def score(self, problem, text):
        with open("asked", "a") as file:
            file.write(f"{self._held_out}\\n")
        if not text.startswith("u="):
            return Score(float(text == problem.reference), 1, 0.0)
        u = float(text[2:10])
        return Score(-abs(u - 0.6) if self._held_out else u, 1, 0.0)
    async def close(self):
        pass
"""
N = 64
RUN = [
    "run", "-m", "experiment=designed", "task=jsonl", "task.path=q.jsonl", "ensemble=simulated",
    "engine._target_=designed.Engine", "reward=designed", "seed=0,1", "tracking.mode=disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("designed")
    (folder / "designed.py").write_text(DESIGNED)
    rows = [{"id": f"q{n}", "prompt": f"Question {n}", "reference": str(n)} for n in range(40)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward").mkdir()
    for name, held_out in (("designed", "false"), ("apart", "true")):
        text = f"# By design.\n_target_: designed.Reads\nheld_out: {held_out}\n"
        (folder / "reward" / f"{name}.yaml").write_text(text)
    for method, budgets in (("random", f"[{N}]"), ("toa", "[4,16]")):
        chosen = [f"method={method}", f"budget.samples={budgets}", "--config-dir", folder]
        done = cli(*RUN, *chosen, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def panel(folder: Path, *arguments: str) -> str:
    done = cli("overoptimisation", "results/designed", "--config-dir", folder, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / "results" / "designed" / "figures" / f"jsonl-overoptimisation-{name}.csv"
    with path.open() as file:
        return list(csv.DictReader(file))


def best_of(folder: Path, n: int) -> list[float]:
    """u of the best of the first n samples, by problem and seed."""
    found = []
    for seed in (0, 1):
        path = folder / f"results/designed/jsonl/simulated/random/seed={seed}/trajectories.jsonl"
        for line in path.read_text().splitlines():
            found.append(max(sample["reward"] for sample in json.loads(line)["samples"][:n]))
    return found


def test_gold_turns_down_where_the_design_says(folder: Path) -> None:
    said = panel(folder)
    points = {int(float(row["n"])): row for row in rows(folder, "accuracy") if row["curve"] == "random"}
    assert list(points) == [1, 2, 4, 8, 16, 32, 64]
    for n, row in points.items():
        chosen = best_of(folder, n)
        assert float(row["proxy"]) == pytest.approx(sum(chosen) / len(chosen))
        assert float(row["gold"]) == pytest.approx(sum(0.3 < u < 0.95 for u in chosen) / len(chosen))
        assert float(row["gold_lo"]) - 0.1 <= 0.95**n - 0.3**n <= float(row["gold_hi"]) + 0.1
        assert float(row["x"]) == n and row["problems"] == "40"
    proxies = [float(row["proxy"]) for row in points.values()]
    assert proxies == sorted(proxies)
    [turn] = [row for row in rows(folder, "accuracy-turns") if row["curve"] == "random"]
    assert float(turn["n"]) in (2, 4, 8) and float(turn["upper"]) < -0.5
    assert "over-optimised" in next(line for line in said.splitlines() if " random " in line)
    for ending in ("png", "svg", "pdf"):
        assert (folder / f"results/designed/figures/jsonl-overoptimisation-accuracy.{ending}").is_file()
    drawn = (folder / "results/designed/figures/jsonl-overoptimisation-accuracy.svg").read_text()
    assert "gold:accuracy" in drawn and "reward:designed" in drawn


def test_a_method_that_its_budget_shapes_is_read_at_its_budgets(folder: Path) -> None:
    panel(folder, "x=flops")
    points = [row for row in rows(folder, "accuracy") if row["curve"] == "toa"]
    assert [float(row["n"]) for row in points] == [4, 16]
    assert 0 < float(points[0]["x"]) < float(points[1]["x"])


def test_calibration_is_gold_by_quantile_of_the_reward(folder: Path) -> None:
    panel(folder, "bins=5", f"calibration={N}")
    bins = [row for row in rows(folder, "accuracy-calibration") if row["curve"] == "random"]
    assert [int(row["quantile"]) for row in bins] == [1, 2, 3, 4, 5]
    assert sum(int(row["samples"]) for row in bins) == 2 * 40 * N
    # Of u in fifths: 0 to 0.2 none, 0.2 to 0.4 half, then all, and of the last fifth three quarters.
    golds = [float(row["gold"]) for row in bins]
    assert golds == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.75], abs=0.07)
    assert all(float(row["gold_lo"]) <= float(row["gold"]) <= float(row["gold_hi"]) for row in bins)


def test_a_held_out_reward_may_be_the_gold_and_its_scores_are_stored(folder: Path) -> None:
    (folder / "asked").unlink()
    panel(folder, "reward@held_out=apart", "x=kl", "calibration=0")
    asked = (folder / "asked").read_text().splitlines()
    assert set(asked) == {"True"} and len(asked) > 40
    for row in rows(folder, "apart"):
        if row["curve"] == "random":
            n = int(float(row["n"]))
            chosen = best_of(folder, n)
            assert float(row["gold"]) == pytest.approx(sum(-abs(u - 0.6) for u in chosen) / len(chosen))
            assert float(row["x"]) == pytest.approx(math.log(n) - (n - 1) / n)
    assert rows(folder, "apart-calibration") == []
    panel(folder, "reward@held_out=apart", "calibration=0")
    assert (folder / "asked").read_text().splitlines() == asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gold=acuracy"], "Did you mean 'accuracy'"),
        (["x=time"], "flops, kl, samples, tokens"),
        (["reward@held_out=designed"], "the one that the run selected by"),
        (["store=nowhere.sqlite"], "no store at nowhere.sqlite"),
        (["bins=0"], "bins=0"),
        (["calibration=-1"], "calibration=-1"),
    ],
)
def test_bad_input_is_named(folder: Path, arguments: list[str], message: str) -> None:
    done = cli("overoptimisation", "results/designed", "--config-dir", folder, *arguments, cwd=folder)
    assert done.returncode == 2 and message in done.stderr
