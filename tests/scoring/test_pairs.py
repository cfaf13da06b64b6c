"""Answers beside the right ones: decisions, failures, hostile answers."""

import json

import pytest

from toa_exp.errors import BadInput
from toa_exp.metrics.answers import ExactMatch
from toa_exp.scoring.pairs import score_pairs

PAIRS = [{"id": "a", "gold": "18", "pred": "18"}, {"id": "b", "gold": "x", "pred": "y"}]


def test_accuracy_and_decisions():
    scored = score_pairs(
        [*PAIRS, {"id": "c", "gold": "2", "pred": " "}, {"id": "d", "gold": 5, "pred": None}], ExactMatch()
    )
    measure = scored.measures["accuracy"]
    assert (measure.value, measure.n, measure.failed) == (0.25, 4, 2)
    assert "wrapped" not in measure.signature  # that is Math-Verify's way to read them
    assert [row["correct"] for row in scored.rows] == [True, False, False, False]
    assert [row["failed"] for row in scored.rows] == [None, None, "empty", "empty"]


def test_the_order_of_rows_is_of_no_account():
    rows = [{"id": str(n), "gold": "1", "pred": str(n % 3)} for n in range(40)]
    there, back = (score_pairs(some, ExactMatch()).measures["accuracy"] for some in (rows, rows[::-1]))
    assert there == back and there.interval[0] < there.value < there.interval[1]


def test_an_answer_that_is_no_number_is_missing():
    scored = score_pairs([*PAIRS, {"id": "c", "gold": "2", "pred": float("nan")}], ExactMatch())
    assert scored.measures["accuracy"].failed == 1 and scored.rows[2]["failed"] == "empty"


@pytest.mark.parametrize(
    "row, said",
    [
        ({"id": "a", "gold": "1", "pred": "1"}, "more than once"),
        ({"gold": "1", "pred": "1"}, "has no 'id'"),
        ({"id": "c", "gold": "", "pred": "1"}, "gold"),
        ({"id": "c", "gold": float("nan"), "pred": float("nan")}, "gold"),
        ({"id": "c", "gold": "1", "pred": ["1"]}, "give a text"),
    ],
)
def test_bad_rows_are_refused(row, said):
    with pytest.raises(BadInput, match=said):
        score_pairs([*PAIRS, row], ExactMatch())


def test_decisions_of_math_verify_are_those_recorded(shared):
    pytest.importorskip("math_verify")
    from toa_exp.metrics.math import MathVerify

    lines = (shared / "data/math/answer_equivalence.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scored = score_pairs(rows, MathVerify())
    decided = {row["id"]: row["correct"] for row in scored.rows}
    assert decided == {row["id"]: bool(row["math_verify"]["wrapped"]) for row in rows}
    assert scored.measures["accuracy"].failed == 0
    # What the judge is known to get wrong, by the labels of the data.
    known = json.loads((shared / "data/math/expected.json").read_text())["answer_equivalence"][
        "math_verify_wrapped"
    ]
    wrong = {
        row["id"]: row["equivalent"] for row in rows if row["equivalent"] not in (None, decided[row["id"]])
    }
    assert {name for name, right in wrong.items() if right} == set(known["false_negative"])
    assert {name for name, right in wrong.items() if not right} == set(known["false_positive"])


@pytest.mark.slow
def test_hostile_answers_stop_nothing():
    pytest.importorskip("math_verify")
    from toa_exp.metrics.math import MathVerify

    answers = [
        "9^{9^{9^{9^{9}}}}!",
        "x" * 100_000,
        "\0",
        "\u202e٣",
        "\\frac{" * 3000,
        "{" * 100_000,
        "18",
        "\ud800",
    ]
    rows = [{"id": str(n), "gold": "18", "pred": answer} for n, answer in enumerate(answers)]
    scored = score_pairs(rows, MathVerify(timeout=2.0))
    assert [row["correct"] for row in scored.rows] == [answer == "18" for answer in answers]
    assert scored.rows[0]["failed"] == "not verified"
    assert scored.measures["accuracy"].n == len(answers)
