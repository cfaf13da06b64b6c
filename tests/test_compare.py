"""Comparison at equal compute, on made-up runs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from omegaconf import OmegaConf
from test_figures import LABELS

from toa_exp.compare import compare, table, write
from toa_exp.errors import BadInput
from toa_exp.figures import figures
from toa_exp.metrics.pooled import statistics

BUDGETS = [4, 8, 16]
Quality = Callable[[int, int, int], object]
"""From seed, problem and budget to the metric `quality`; None stands for no answer."""


def make_run(
    root: Path,
    method: str,
    quality: Quality,
    *,
    price: float = 1.0,
    problems: int = 200,
    seed: int = 0,
    pools: dict[str, str] | None = None,
    made: str = "0123456789abcdef",
) -> None:
    """A run folder; a sample costs `price` tokens."""
    folder = root / "first" / "gsm8k" / "simulated" / method / f"seed={seed}"
    folder.mkdir(parents=True)
    with (folder / "trajectories.jsonl").open("w") as file:
        for problem in range(problems):
            for budget in BUDGETS:
                value = quality(seed, problem, budget)
                cost = {"prompt_tokens": price * budget, "completion_tokens": 0}
                line = {
                    "problem": f"p{problem}",
                    "budget": budget,
                    "cost": cost,
                    "metrics": {"quality": value},
                }
                line["answer"] = None if value is None else 0
                file.write(json.dumps(line) + "\n")
    rows = [f"{budget},0,0,0,0" for budget in BUDGETS]
    (folder / "curve.csv").write_text("\n".join(["budget,failed,quality,quality_lo,quality_hi", *rows, ""]))
    run = LABELS | {"method": method, "problems": made, "pools": pools or {}}
    OmegaConf.save(OmegaConf.create({"run": run, "seed": seed, "flops": "model"}), folder / "config.yaml")


def solved(level: float, name: str) -> Quality:
    """Right with a probability that grows with the logarithm of the budget."""

    def quality(seed: int, problem: int, budget: int) -> float:
        easy = Random(f"{seed}/{problem}").random()  # shared by all methods: the comparison is paired
        own = Random(f"{seed}/{problem}/{budget}/{name}").random()
        return float(0.9 * easy + 0.1 * own < level + 0.1 * math.log2(budget))

    return quality


def test_the_difference_is_that_at_equal_compute(tmp_path: Path) -> None:
    linear: Quality = lambda seed, problem, budget: math.log2(budget)  # noqa: E731
    make_run(tmp_path, "toa", linear, price=2.0)
    make_run(tmp_path, "random", linear)
    rows, _ = compare(tmp_path, "toa", "tokens", "quality")
    assert [(row.budget, row.x, row.y) for row in rows] == [(4, 8.0, 2.0), (8, 16.0, 3.0), (16, 32.0, 4.0)]
    first, second, third = rows
    assert (first.other_y, second.other_y) == pytest.approx((3.0, 4.0))
    assert (first.difference, first.lower, first.upper) == pytest.approx((-1.0, -1.0, -1.0))
    assert third.other_y is third.difference is third.lower is None  # random was not run at 32 tokens


def test_between_two_budgets_the_value_is_linear_in_log_compute(tmp_path: Path) -> None:
    make_run(tmp_path, "toa", lambda *_: 0.0, price=math.sqrt(2))
    make_run(tmp_path, "random", lambda _, problem, budget: {4: 0.0, 8: 1.0, 16: 3.0}[budget])
    rows, _ = compare(tmp_path, "toa", "tokens", "quality")
    assert [row.other_y for row in rows[:2]] == pytest.approx([0.5, 2.0])


def test_pairing_narrows_the_interval_and_a_real_difference_is_found(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        make_run(tmp_path, "toa", solved(0.35, "toa"), seed=seed)
        make_run(tmp_path, "random", solved(0.30, "random"), seed=seed)
        make_run(tmp_path, "moa", solved(0.35, "moa"), seed=seed)
    rows, (signature,) = compare(tmp_path, "toa", "tokens", None)
    by = {(row.other, row.budget): row for row in rows}
    worse, same = by["random", 8], by["moa", 8]
    assert worse.lower is not None and worse.lower > 0 and worse.difference == pytest.approx(0.05, abs=0.03)
    assert same.lower is not None and same.upper is not None and same.lower < 0 < same.upper
    assert same.upper - same.lower < 0.06  # unpaired: 2 x 1.96 x sqrt(2 x 0.25 / 600) = 0.11
    assert "seeds:0,1,2" in signature and "paired:by problem" in signature and "n:200" in signature
    text = table(rows)
    assert text.count(" *") == sum(1 for row in rows if row.lower and (row.lower > 0 or (row.upper or 0) < 0))


def test_pooled_metrics_are_compared_as_such(tmp_path: Path) -> None:
    answers = {"toa": "zwei Äpfel und drei Birnen", "random": "zwei Äpfel und vier Birnen"}
    reference = "zwei Äpfel und drei Birnen"
    pools = {"quality": "toa_exp.metrics.pooled.bleu"}
    for method, text in answers.items():
        row = statistics("bleu", text, reference)
        make_run(tmp_path, method, lambda *_, row=row: row, problems=10, pools=pools)
    rows, _ = compare(tmp_path, "toa", "tokens", "quality")
    assert rows[0].y == pytest.approx(100.0)
    assert rows[0].other_y == pytest.approx(_bleu(answers["random"], reference, 10))


def _bleu(text: str, reference: str, count: int) -> float:
    import sacrebleu

    return float(sacrebleu.corpus_bleu([text] * count, [[reference] * count]).score)


def test_problems_without_an_answer_are_left_out_of_both(tmp_path: Path) -> None:
    make_run(tmp_path, "toa", lambda _, problem, budget: None if problem == 0 else 1.0, problems=5)
    make_run(tmp_path, "random", lambda _, problem, budget: 0.0 if problem == 1 else 1.0, problems=5)
    rows, _ = compare(tmp_path, "toa", "tokens", "quality")
    assert {row.problems for row in rows} == {4}
    assert rows[0].difference == pytest.approx(0.25)


def test_runs_of_other_problems_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "toa", lambda *_: 1.0, problems=5)
    make_run(tmp_path, "random", lambda *_: 1.0, problems=6)
    with pytest.raises(BadInput, match="different problems"):
        compare(tmp_path, "toa", "tokens", "quality")


def test_problems_of_the_same_names_are_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path, "toa", lambda *_: 1.0, made="of six parts")
    make_run(tmp_path, "random", lambda *_: 1.0, made="of four parts")
    for refused in (
        lambda: compare(tmp_path, "toa", "tokens", "quality"),
        lambda: figures(tmp_path, "tokens", "quality", None),
    ):
        with pytest.raises(
            BadInput, match=r"(?s)of four parts.*random.*of six parts.*toa.*experiment=<name>"
        ):
            refused()


def test_only_seeds_that_both_were_run_with_are_compared(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "toa", lambda seed, *_: float(seed), problems=5, seed=seed)
    make_run(tmp_path, "random", lambda *_: 0.0, problems=5, seed=1)
    make_run(tmp_path, "moa", lambda *_: 0.0, problems=5, seed=2)
    with pytest.raises(BadInput, match="no seed in common"):
        compare(tmp_path, "toa", "tokens", "quality")
    make_run(tmp_path, "moa", lambda *_: 0.0, problems=5, seed=0)
    rows, _ = compare(tmp_path, "toa", "tokens", "quality")
    assert {(row.other, row.y, row.seeds) for row in rows} == {("random", 1.0, 1), ("moa", 0.0, 1)}


def test_what_there_is_none_of_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "toa", lambda *_: 1.0, problems=5)
    with pytest.raises(BadInput, match="alone"):
        compare(tmp_path, "toa", "tokens", "quality")
    make_run(tmp_path, "random", lambda *_: 1.0, problems=5)
    with pytest.raises(BadInput, match="Allowed: random, toa"):
        compare(tmp_path, "moa", "tokens", "quality")
    with pytest.raises(BadInput, match=r"Allowed: .*flops"):
        compare(tmp_path, "toa", "parsecs", "quality")


def test_what_costs_nothing_cannot_be_set_equal(tmp_path: Path) -> None:
    for method in ("toa", "random"):
        make_run(tmp_path, method, lambda *_: 1.0, price=0.0, problems=5)
    with pytest.raises(BadInput, match="cost nothing"):
        compare(tmp_path, "toa", "tokens", "quality")


def test_the_csv_holds_what_the_table_shows(tmp_path: Path) -> None:
    make_run(tmp_path, "toa", lambda *_: 1.0, price=2.0, problems=5)
    make_run(tmp_path, "random", lambda *_: 0.0, problems=5)
    rows, _ = compare(tmp_path, "toa", "tokens", "quality")
    path = tmp_path / "out" / "comparison.csv"
    write(path, rows)
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert [row["difference"] for row in read] == ["1.0", "1.0", ""]
    assert "not run at this compute" in table(rows)
