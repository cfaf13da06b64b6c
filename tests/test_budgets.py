"""Budgets in samples and in other units: what a limit pays for."""

import pytest
from helpers import ToyEngine, lines, run

from toa_exp.budgets import Budgets
from toa_exp.errors import BadInput
from toa_exp.methods.moa import moa
from toa_exp.methods.parallel import parallel
from toa_exp.methods.prs import prs
from toa_exp.methods.random import random
from toa_exp.methods.sequential import sequential
from toa_exp.methods.toa import toa


@pytest.mark.parametrize("method", [random, parallel, sequential, moa], ids=lambda m: m.__name__)
def test_anytime_methods_read_off_what_runs_of_their_own_give(tmp_path, method):
    together, _ = run(tmp_path / "together", method, budgets=Budgets("samples", (3, 8, 13), 13))
    engine = ToyEngine()
    for budget in (3, 8, 13):
        alone, _ = run(
            tmp_path / str(budget), method, engine=engine, budgets=Budgets("samples", (budget,), 13)
        )
        assert lines(alone) == [line for line in lines(together) if line["budget"] == budget]


def test_an_anytime_method_runs_once(tmp_path):
    engine = ToyEngine()
    run(tmp_path, parallel, engine=engine, problems=1, budgets=Budgets("samples", (4, 8, 16), 16))
    assert len(engine.asked) == 16


@pytest.mark.parametrize("method", [random, parallel, sequential, moa, prs, toa], ids=lambda m: m.__name__)
@pytest.mark.parametrize("unit", ["tokens", "flops", "seconds"])
def test_a_limit_is_used_up_and_never_passed(tmp_path, method, unit):
    probe, _ = run(tmp_path / "probe", method, budgets=Budgets("samples", (12,), 12))
    costs = [line["cost"] for line in lines(probe)]
    spent = [c["prompt_tokens"] + c["completion_tokens"] if unit == "tokens" else c[unit] for c in costs]
    limits = (max(spent) / 3, max(spent))
    text, _ = run(tmp_path / "limited", method, budgets=Budgets(unit, limits, 64))
    found = lines(text)
    assert [line["budget"] for line in found] == [*limits] * 6
    for line in found:
        cost = line["cost"]
        used = cost["prompt_tokens"] + cost["completion_tokens"] if unit == "tokens" else cost[unit]
        assert used <= line["budget"]
        assert cost["samples"] == len(line["samples"]) > 0
    again, _ = run(tmp_path / "again", method, budgets=Budgets(unit, limits, 64), concurrency=1)
    assert again == text


@pytest.mark.parametrize("method", [prs, toa], ids=lambda m: m.__name__)
def test_under_a_limit_a_search_is_a_complete_one_of_its_length(tmp_path, method):
    limited, _ = run(tmp_path / "limited", method, problems=2, budgets=Budgets("tokens", (400.0,), 64))
    for line in lines(limited):
        count = len(line["samples"])
        whole, _ = run(tmp_path / str(count), method, problems=2, budgets=Budgets("samples", (count,), 64))
        (same,) = [other for other in lines(whole) if other["problem"] == line["problem"]]
        assert same["samples"] == line["samples"]
        average = sum(s["prompt_tokens"] + s["completion_tokens"] for s in line["samples"]) / count
        assert 400 - average * count < 2 * average


def test_a_limit_below_one_sample_gives_no_answer(tmp_path):
    for method in (random, toa):
        text, _ = run(tmp_path / method.__name__, method, budgets=Budgets("tokens", (1.0,), 8), problems=2)
        assert [(line["samples"], line["answer"]) for line in lines(text)] == [([], None)] * 2


def test_a_limit_in_dollars_needs_prices(tmp_path):
    with pytest.raises(BadInput, match="price"):
        run(tmp_path, random, budgets=Budgets("usd", (1.0,), 8))


def test_under_a_limit_a_wide_batch_draws_little_more_than_it_uses(tmp_path):
    engine = ToyEngine()
    text, _ = run(tmp_path, random, engine=engine, problems=4, budgets=Budgets("tokens", (600.0,), 1024))
    used = sum(len(line["samples"]) for line in lines(text))
    assert used <= len(engine.asked) <= used + 4 * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit": "token"}, "Did you mean 'tokens'"),
        ({"samples": []}, "above 0"),
        ({"samples": [0]}, "above 0"),
        ({"samples": 2.5}, "integer"),
        ({"unit": "flops"}, r"budget\.limit"),
        ({"limit": 5}, r"budget\.unit"),
        ({"unit": "flops", "limit": [-1]}, "above 0"),
    ],
)
def test_impossible_budgets_are_refused(given, message):
    with pytest.raises(BadInput, match=message):
        Budgets.of(**{"unit": "samples", "samples": [8], "limit": None, "max_samples": 8, **given})


def test_one_number_or_a_list_in_any_order():
    assert Budgets.of("samples", 8, None, 64).values == (8,)
    assert Budgets.of("samples", [16, 8, 16], None, 64).values == (8, 16)
