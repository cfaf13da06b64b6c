"""Figures from made-up runs: what is drawn, what it says of itself, and that it is always the same."""

from __future__ import annotations

import csv
import json
import logging
import math
import random
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from toa_exp import __version__
from toa_exp.core import Reply, Request, Usage
from toa_exp.cost import Cost
from toa_exp.curves import Curve, write_curve
from toa_exp.errors import BadInput
from toa_exp.figures import figures, lines, looks_of, signature
from toa_exp.results import Point, find_runs, points
from toa_exp.runner import Outcome
from toa_exp.trajectory import Step

BUDGETS = [4, 8, 16, 32]
LABELS = {
    "configuration": "0a1b",
    "version": __version__,
    "experiment": "first",
    "task": "gsm8k",
    "ensemble": "simulated",
    "method": "random",
    "selection": "best_reward",
    "reward": "simulated",
    "engine": "simulator",
}


def outcome(problem: int, budget: int, skill: float, rng: random.Random, usd: float | None = 0.0) -> Outcome:
    """A problem at a budget, the likelier solved the more samples and skill there are."""
    solved = float(rng.random() < 1 - (1 - skill * (problem % 7 + 1) / 8) ** math.log2(budget))
    steps, cost = [], Cost()
    for index in range(budget):
        usage = Usage(200 + 10 * problem, rng.randint(100, 300))
        tokens = usage.prompt_tokens + usage.completion_tokens
        flops = 16e9 * tokens, 2e9 * tokens
        charged = Cost(1, usage.prompt_tokens, usage.completion_tokens, *flops, usd, 0.5)
        cost.add(charged)
        reply = Reply(Request("a"), "", rng.gauss(solved, 0.3), usage)
        steps.append(Step(reply, (), index.to_bytes(2, "big"), charged))
    best = max(step.reply.reward for step in steps)
    return Outcome(f"p{problem}", budget, steps, 0, {"accuracy": solved, "f1": solved / 2}, cost, best)


def make_run(
    root: Path,
    *,
    seed: int = 0,
    problems: int = 40,
    skill: float = 0.3,
    budgets: list[int] = BUDGETS,
    failed: dict[int, list[int]] | None = None,
    parked: int = 0,
    usd: float | None = 1e-4,
    **labels: str,
) -> Path:
    """Write a run folder as the runner does; `failed` lists problems without an answer by budget."""
    names = LABELS | labels
    path = [names[name] for name in ("experiment", "task", "ensemble", "method")]
    folder = root.joinpath(*path, f"seed={seed}")
    folder.mkdir(parents=True)
    curve = Curve(names["method"], budgets)
    rng = random.Random(f"{seed}/{names['task']}/{names['ensemble']}/{names['method']}")
    with (folder / "trajectories.jsonl").open("w") as file:
        for problem in range(problems):
            for budget in budgets:
                made = outcome(problem, budget, skill, rng, usd)
                if problem in (failed or {}).get(budget, []):
                    made = Outcome(made.problem, budget, [], None, None, made.cost, None)
                file.write(made.line() + "\n")
                curve.add(made)
    for _ in range(parked):
        curve.park()
    write_curve(folder / "curve.csv", curve.rows())
    OmegaConf.save(OmegaConf.create({"run": names, "seed": seed, "flops": "model"}), folder / "config.yaml")
    return folder


def columns(folder: Path) -> dict[str, list[float]]:
    """The numbers of curve.csv by column."""
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if name != "method"}


def curve(root: Path, x: str, y: str) -> list[Point]:
    return points(find_runs(root), x, y)


def test_a_single_seed_agrees_with_its_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path, failed={4: [0, 5], 32: [7]}, parked=2)
    made = columns(folder)
    for y in ("accuracy", "f1", "best_reward"):
        drawn = curve(tmp_path, "flops", y)
        assert [point.budget for point in drawn] == made["budget"]
        assert [point.x for point in drawn] == pytest.approx(made["flops"])
        assert [point.y for point in drawn] == pytest.approx(made[y])
        assert [point.lower for point in drawn] == pytest.approx(made[f"{y}_lo"])
        assert [point.upper for point in drawn] == pytest.approx(made[f"{y}_hi"])
        assert [point.problems for point in drawn] == made["problems"] == [38, 40, 40, 39]
        assert [point.failed for point in drawn] == made["failed"] == [4, 2, 2, 3]


def test_every_axis_is_a_mean_over_problems(tmp_path: Path) -> None:
    made = columns(make_run(tmp_path))
    tokens = [sum(pair) for pair in zip(made["prompt_tokens"], made["completion_tokens"], strict=True)]
    total = [sum(pair) for pair in zip(made["flops"], made["reward_flops"], strict=True)]
    known = {name: made[name] for name in ("samples", "flops", "usd", "seconds")}
    for x, values in {**known, "tokens": tokens, "total_flops": total}.items():
        assert [point.x for point in curve(tmp_path, x, "f1")] == pytest.approx(values)


def test_seeds_are_averaged_problem_by_problem(tmp_path: Path) -> None:
    folders = [make_run(tmp_path, problems=12), make_run(tmp_path, problems=12, seed=1, failed={8: [3]})]
    solved: dict[str, list[float]] = {}
    for folder in folders:
        for line in (folder / "trajectories.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["budget"] == 8 and record["answer"] is not None:
                solved.setdefault(record["problem"], []).append(record["metrics"]["accuracy"])
    assert len(solved["p3"]) == 1
    point = curve(tmp_path, "samples", "accuracy")[1]
    assert point.y == pytest.approx(sum(sum(seeds) / len(seeds) for seeds in solved.values()) / 12)
    assert point.lower < point.y < point.upper
    assert (point.problems, point.failed) == (12, 1)


def test_the_signature_names_what_differs(tmp_path: Path) -> None:
    make_run(tmp_path, method="random", seed=0)
    make_run(tmp_path, method="prs", seed=0)
    make_run(tmp_path, method="toa", seed=0, failed={8: [1]})
    make_run(tmp_path, method="toa", seed=10)
    made = signature(lines(find_runs(tmp_path), "flops", "accuracy"), x="flops", y="accuracy")
    assert made == (
        "experiment:first|task:gsm8k|ensemble:simulated|reward:simulated|selection:best_reward|"
        "engine:simulator|flops:model|seeds:0,10 (toa) 0 (others)|n:40|failed:1 (toa) 0 (others)|"
        f"x:flops|y:accuracy|bootstrap:1000 resamples of problems,95%,seed 0|toa-exp:{__version__}"
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Runs of two tasks, one of them with two ensembles, and their figures."""
    root = tmp_path_factory.mktemp("study")
    for method in ("random", "toa"):
        make_run(root, method=method)
        for ensemble in ("small", "large"):
            make_run(root, task="math500", ensemble=ensemble, method=method, budgets=[8])
    return root / "first", figures(root / "first", "flops", None, None)


def text(path: Path) -> list[str]:
    """The words of an SVG."""
    from xml.etree import ElementTree

    nodes = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()) for node in nodes]


def test_a_figure_a_task_named_by_what_it_is(study: tuple[Path, list[Path]]) -> None:
    folder, files = study
    names = ["gsm8k-accuracy-vs-flops", "math500-accuracy-vs-flops"]
    assert files == [folder / "figures" / f"{name}.{end}" for name in names for end in ("png", "svg", "pdf")]
    assert all(path.stat().st_size for path in files)


def test_text_stays_text_and_says_what_is_drawn(study: tuple[Path, list[Path]]) -> None:
    gsm8k, math500 = text(study[1][1]), text(study[1][4])
    for words in (gsm8k, math500):
        assert {"Accuracy", "FLOPs per problem", "95% interval", "over problems"} <= set(words)
    assert {"gsm8k", "random", "toa"} <= set(gsm8k)
    assert {"toa · small", "toa · large", "random · small", "random · large"} <= set(math500)
    assert any(line.startswith("experiment:first|task:gsm8k|ensemble:simulated|") for line in gsm8k)


def test_every_file_carries_its_signature(study: tuple[Path, list[Path]]) -> None:
    from PIL import Image

    folder, (png, svg, pdf, *_) = study
    runs = [run for run in find_runs(folder) if run.labels["task"] == "gsm8k"]
    made = signature(lines(runs, "flops", "accuracy"), x="flops", y="accuracy")
    with Image.open(png) as image:
        assert image.info["Description"] == made
    assert made in svg.read_text()
    assert b"experiment:first|task:gsm8k|ensemble:simulated" in pdf.read_bytes()


def test_the_same_runs_give_the_same_bytes(study: tuple[Path, list[Path]], tmp_path: Path) -> None:
    # Figures, and copies of a run's files elsewhere, are not runs.
    folder, files = study
    copies = folder / "wandb" / "offline-run" / "artifacts"
    shutil.copytree(folder / "gsm8k/simulated/toa/seed=0", copies)
    again = figures(folder, "flops", "accuracy", tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_no_two_methods_look_alike() -> None:
    methods = {"toa", "random", *(f"toa,alpha={alpha}" for alpha in range(20))}
    looks = looks_of(methods)
    assert looks.keys() == methods
    assert len(set(looks.values())) == len(methods)
    assert looks["toa"] == looks_of({"toa", "moa"})["toa"]


def test_unfinished_runs_give_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path)
    unfinished = make_run(tmp_path, seed=1)
    (unfinished / "trajectories.jsonl").rename(unfinished / "trajectories.jsonl.partial")
    with caplog.at_level(logging.WARNING):
        assert [run.seed for run in find_runs(tmp_path)] == [0]
    assert "seed=1 (rerun its command" in caplog.text


def test_a_budget_without_any_answer_gives_no_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path, problems=3, failed={4: [0, 1, 2]})
    assert [point.budget for point in curve(tmp_path, "flops", "accuracy")] == [8, 16, 32]
    assert "no answer to any problem at budget 4" in caplog.text


def test_there_must_be_something_to_draw(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no folder .*toa-exp run"):
        figures(tmp_path / "nowhere", "flops", None, None)
    with pytest.raises(BadInput, match=r"no finished run below .*toa-exp run"):
        figures(tmp_path, "flops", None, None)
    make_run(tmp_path, problems=1, failed={budget: [0] for budget in BUDGETS})
    with pytest.raises(BadInput, match="nothing to draw"):
        figures(tmp_path, "flops", "best_reward", None)


def test_axes_are_among_those_there_are(tmp_path: Path) -> None:
    make_run(tmp_path, usd=None)
    with pytest.raises(BadInput, match=r"'flop'. Did you mean 'flops'\? Allowed: flops, samples"):
        figures(tmp_path, "flop", None, None)
    with pytest.raises(BadInput, match=r"y for task gsm8k 'acuracy'.*Allowed: accuracy, best_reward, f1"):
        figures(tmp_path, "flops", "acuracy", None)
    with pytest.raises(BadInput, match=r"usd is unknown in .*seed=0.*price"):
        figures(tmp_path, "usd", None, None)


def test_a_curve_is_of_one_kind(tmp_path: Path) -> None:
    make_run(tmp_path, method="toa", seed=0)
    make_run(tmp_path, method="toa", seed=1, selection="last")
    make_run(tmp_path, method="prs", seed=0)
    make_run(tmp_path, method="prs", seed=1, budgets=[4, 8])
    runs = find_runs(tmp_path)
    with pytest.raises(BadInput, match="differ in selection: best_reward, last"):
        lines(runs, "flops", "accuracy")
    with pytest.raises(BadInput, match=r"different budgets: .*seed=1 has 4, 8, .* has 4, 8, 16, 32"):
        lines([run for run in runs if run.labels["method"] == "prs"], "flops", "accuracy")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = make_run(tmp_path) / "trajectories.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(BadInput, match=r"trajectories.jsonl:160 is no outcome"):
        curve(tmp_path, "flops", "accuracy")


def test_a_folder_without_labels_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    OmegaConf.save(OmegaConf.create({"seed": 0}), folder / "config.yaml")
    with pytest.raises(BadInput, match=r"config.yaml names no run.experiment, .*, flops: this folder"):
        find_runs(tmp_path)
