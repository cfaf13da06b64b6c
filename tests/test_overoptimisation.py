"""The over-optimisation panel, on runs whose reward is hacked by design.

Every sample has a number u, uniform in [0, 1], that the reward reads; it is right where 0.3 < u < 0.95.
The best of n has the largest u, so it is right with probability 0.95^n - 0.3^n: at most 0.81, at n = 4.
"""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import cli
from omegaconf import OmegaConf

from toa_exp.errors import BadInput
from toa_exp.figures import Line
from toa_exp.gold import Choice, Gold, Judged, SelectedByGold
from toa_exp.overoptimisation import Panel
from toa_exp.panels import overoptimisation
from toa_exp.results import Run
from toa_exp.store import Store

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


@pytest.fixture
def at_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as a user works in it."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def panel(
    *, x: str = "samples", bins: int = 10, held_out: bool | None = None, gold: str | None = "accuracy",
    **settings: object,
) -> None:  # fmt: skip
    node = (
        None if held_out is None else OmegaConf.create({"_target_": "designed.Reads", "held_out": held_out})
    )
    given = {"calibration": 16, "store": None, "retries": 0, "backoff": 0.0, **settings}
    name = "apart" if held_out else "accuracy"
    overoptimisation(Path("results/designed"), Gold(gold, node, **given), name, x=x, bins=bins, out=None)


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
    done = cli("overoptimisation", "results/designed", cwd=folder)
    assert done.returncode == 0, done.stderr
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
    assert "over-optimised" in next(line for line in done.stdout.splitlines() if " random " in line)
    for ending in ("png", "svg", "pdf"):
        assert (folder / f"results/designed/figures/jsonl-overoptimisation-accuracy.{ending}").is_file()
    drawn = (folder / "results/designed/figures/jsonl-overoptimisation-accuracy.svg").read_text()
    assert "gold:accuracy" in drawn and "reward:designed" in drawn


@pytest.mark.slow
def test_a_flat_gold_curve_is_rarely_called_over_optimised() -> None:
    draws = random.Random(5)
    stars = 0
    for _ in range(80):
        judged = [
            Judged(
                str(problem),
                [
                    Choice(2.0**k, 2.0**k, 1.0, 1.0, float(k), (float(draws.random() < 0.6),))
                    for k in range(8)
                ],
                [],
            )
            for problem in range(60)
        ]
        stars += Panel("task", "flat", Line([], []), [judged], None).turn().upper < 0
    assert stars <= 4  # 2.5 % of 80 are 2; with the best n as if it had been given they are 6


def test_a_run_that_gold_selected_is_left_out(
    at_work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = Gold.judge

    def refuse(self: Gold, run: Run) -> list[Judged]:
        if run.labels["method"] == "toa":
            raise SelectedByGold("the held-out reward is the one that the run selected by")
        return judge(self, run)

    monkeypatch.setattr(Gold, "judge", refuse)
    panel(calibration=0)
    assert {row["curve"] for row in rows(at_work, "accuracy")} == {"random"}
    assert "left out, since the held-out reward" in caplog.text and "/toa" in caplog.text


def test_kl_is_of_best_of_n_of_samples_drawn_alike(at_work: Path, caplog: pytest.LogCaptureFixture) -> None:
    panel(x="kl", calibration=0)
    assert "that of toa is another one" in caplog.text


def test_a_method_that_its_budget_shapes_is_read_at_its_budgets(at_work: Path) -> None:
    panel(x="flops")
    points = [row for row in rows(at_work, "accuracy") if row["curve"] == "toa"]
    assert [float(row["n"]) for row in points] == [4, 16]
    assert 0 < float(points[0]["x"]) < float(points[1]["x"])


def test_calibration_is_gold_by_quantile_of_the_reward(at_work: Path) -> None:
    panel(bins=5, calibration=N)
    bins = [row for row in rows(at_work, "accuracy-calibration") if row["curve"] == "random"]
    assert [int(row["quantile"]) for row in bins] == [1, 2, 3, 4, 5]
    assert sum(int(row["samples"]) for row in bins) == 2 * 40 * N
    # Of u in fifths: 0 to 0.2 none, 0.2 to 0.4 half, then all, and of the last fifth three quarters.
    golds = [float(row["gold"]) for row in bins]
    assert golds == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.75], abs=0.07)
    assert all(float(row["gold_lo"]) <= float(row["gold"]) <= float(row["gold_hi"]) for row in bins)


def test_a_held_out_reward_may_be_the_gold_and_its_scores_are_stored(at_work: Path) -> None:
    (at_work / "asked").unlink()
    command = ["overoptimisation", "results/designed", "--config-dir", ".", "reward@held_out=apart"]
    done = cli(*command, "x=kl", "calibration=0", cwd=at_work)
    assert done.returncode == 0, done.stderr
    asked = (at_work / "asked").read_text().splitlines()
    assert set(asked) == {"True"} and len(asked) > 40
    for row in rows(at_work, "apart"):
        if row["curve"] == "random":
            n = int(float(row["n"]))
            chosen = best_of(at_work, n)
            assert float(row["gold"]) == pytest.approx(sum(-abs(u - 0.6) for u in chosen) / len(chosen))
            assert float(row["x"]) == pytest.approx(math.log(n) - (n - 1) / n)
    assert rows(at_work, "apart-calibration") == []
    panel(held_out=True, calibration=0)
    assert (at_work / "asked").read_text().splitlines() == asked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gold": "acuracy"}, "Did you mean 'accuracy'"),
        ({"x": "time"}, "flops, kl, samples, tokens"),
        ({"held_out": False}, "the one that the run selected by"),
        ({"store": "nowhere.sqlite"}, r"no store at nowhere\.sqlite"),
        ({"bins": 0}, "bins=0"),
        ({"calibration": -1}, "calibration=-1"),
    ],
)
def test_bad_input_is_named(at_work: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        panel(**settings)


def test_texts_that_are_not_in_the_store_are_named(at_work: Path, tmp_path: Path) -> None:
    Store(tmp_path / "empty.sqlite").close()
    with pytest.raises(BadInput, match=r"no text for draw \w{32} of problem 'q0'.*store\.path="):
        panel(store=str(tmp_path / "empty.sqlite"))
