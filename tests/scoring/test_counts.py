"""Coverage from counts of right samples."""

import json
from fractions import Fraction
from math import comb

import pytest

from toa_exp.errors import BadInput
from toa_exp.metrics.coverage import pass_at_k, sizes
from toa_exp.scoring.counts import score_counts
from toa_exp.scoring.files import read


@pytest.mark.parametrize(
    "n, c, k", [(1, 0, 1), (5, 1, 5), (10, 3, 7), (100, 1, 50), (200, 37, 10), (40, 39, 2)]
)
def test_pass_at_k_is_the_exact_fraction(n, c, k):
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-14)


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(BadInput):
        pass_at_k(n, c, k)


def test_coverage_is_that_of_the_reference_data(shared):
    rows = read(shared / "data/coverage/correct_counts.csv.gz", "outputs")
    expected = json.loads((shared / "data/coverage/expected.json").read_text())
    for case in expected.pop("pass_at_k_edge_cases"):
        assert pass_at_k(case["n"], case["c"], case["k"]) == pytest.approx(case["pass_at_k"], rel=1e-12)
    for name, values in expected.items():
        chosen = dict(zip(["set", "model"], name.split("/"), strict=False))
        if name.count("/") == 2:
            chosen = dict(zip(["set", "benchmark", "model"], name.split("/"), strict=True))
        ks = [int(k) for k in values["mean_pass_at_k"]]
        measures = score_counts(rows, k=ks, chosen=chosen).measures
        for k in ks:
            measure = measures[f"pass@{k}"]
            assert measure.n == values["n_problems"]
            assert measure.value == pytest.approx(values["mean_pass_at_k"][str(k)], abs=1e-12)
        default = score_counts(rows, k=None, chosen=chosen).measures
        assert set(default) >= {f"pass@{k}" for k in ks}, name


ROWS = [{"problem": "1", "n": "4", "c": "1"}, {"problem": "2", "n": 8, "c": 0}]


@pytest.mark.parametrize(
    "rows, k, said",
    [
        (ROWS, 5, "from 1 to 4"),
        (ROWS, 0, "from 1 to 4"),
        (ROWS, "abc", "k=abc: give integers"),
        (ROWS, 1.5, "k=1.5: give integers"),
        (ROWS, [], "k=\\[\\]: give integers"),
        ([*ROWS, {"problem": "1", "n": 4, "c": 1}], None, "more than once"),
        ([*ROWS, {"problem": "3", "n": 4, "c": 5}], None, "c from 0 to n"),
        ([*ROWS, {"problem": "3", "n": 1e30, "c": 5}], None, "n is from 1 to 1000000000 samples"),
        ([*ROWS, {"problem": "3", "n": 10**400, "c": 5}], None, "no number"),
        ([*ROWS, {"problem": "3", "n": 4, "c": ""}], None, "no integer"),
        ([*ROWS, {"problem": "3", "n": 4, "c": "1.5"}], None, "no integer"),
        ([*ROWS, {"problem": "3", "n": 4, "c": 2, "model": "other"}], None, "2 groups"),
    ],
)
def test_bad_rows_are_refused(rows, k, said):
    with pytest.raises(BadInput, match=said):
        score_counts(rows, k=k, chosen={})


def test_sizes_go_up_to_the_fewest_samples():
    assert sizes(7) == [1, 2, 3, 4, 5, 7]
    assert {128, 100, 3000, 10000} <= set(sizes(10000))
