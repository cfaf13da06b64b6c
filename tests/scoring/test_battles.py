"""Arena-Hard: ratings, win rates and intervals that others computed."""

import json
import math

import pytest

from toa_exp.errors import BadInput
from toa_exp.metrics.arena import Battle, ratings, verdict, win_rate
from toa_exp.scoring.battles import score_battles, score_judgments
from toa_exp.scoring.files import read


@pytest.fixture
def arena(shared):
    return shared / "data/arena_hard"


@pytest.mark.parametrize("name", ["battles_haiku_baseline", "battles_synthetic_round_robin"])
def test_ratings_are_the_exact_optimum(arena, name):
    rows = read(arena / f"{name}.jsonl", "outputs")
    expected = json.loads((arena / "expected.json").read_text())[name]
    battles = [
        Battle(r["model_a"], r["model_b"], {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}[r["winner"]])
        for r in rows
    ]
    found = ratings(battles, expected["baseline"])
    assert found == pytest.approx(expected["bt_elo_exact"], abs=1e-6)
    assert {n: win_rate(r) for n, r in found.items()} == pytest.approx(
        expected["bt_winrate_vs_baseline"], abs=1e-6
    )


def test_battles_of_a_file(arena):
    rows = read(arena / "battles_haiku_baseline.jsonl", "outputs")
    measures = score_battles(rows, system="gpt-4o", baseline=None).measures
    assert measures["score"].value == pytest.approx(91.02564, abs=1e-4)
    assert measures["score"].interval[0] < measures["score"].value < measures["score"].interval[1]
    assert measures["score"].n == len(rows)
    with pytest.raises(BadInput, match="unknown system 'gpt-5'"):
        score_battles(rows, system="gpt-5", baseline=None)


def test_score_and_interval_of_judgments_are_those_published(arena):
    rows = read(arena / "judgments_nemo_fixture.jsonl", "outputs")
    scored = score_judgments(rows)
    score = scored.measures["score"]
    expected = json.loads((arena / "expected.json").read_text())["judgments_nemo_fixture"]
    assert [row["verdicts"] for row in scored.rows] == expected["verdicts"]
    result = expected["result"]
    assert round(score.value, 2) == result["score"]
    assert [round(bound - score.value, 2) for bound in score.interval] == result["95_CI"]
    assert score.failed == result["invalid_scores"]


def test_verdicts_of_many_judgments(arena):
    expected = json.loads((arena / "expected.json").read_text())["synthetic_verdicts"]
    texts = [[None if v is None else f"So: [[{v}]]" for v in pair] for pair in expected["verdicts"]]
    rows = [{"id": n, "judgement_gen_base": a, "judgement_base_gen": b} for n, (a, b) in enumerate(texts)]
    score = score_judgments(rows).measures["score"]
    result = expected["arena_hard_code_result"]
    assert score.value == pytest.approx(expected["closed_form_winrate_percent"], abs=1e-6)
    assert [round(bound - score.value, 2) for bound in score.interval] == result["95_CI"]
    assert (score.n, score.failed) == (expected["n_battles_after_weighting"], result["invalid_scores"])
    # arena-hard-auto's own form has the baseline first in the first game; that of v0.1 has question_id.
    games = [
        {"question_id": str(n), "games": [{"score": b}, {"score": a}]}
        for n, (a, b) in enumerate(expected["verdicts"])
    ]
    assert score_judgments(games).measures["score"].value == pytest.approx(score.value)


@pytest.mark.parametrize(
    "text, label",
    [
        ("[[A>B]]", "A>B"),
        ("[[A>B]] no, [[A>B]]", "A>B"),
        ("[[A>B]] or [[B>A]]", None),
        ("", None),
        ("[[C]]", None),
    ],
)
def test_a_verdict_is_read_where_it_is_one(text, label):
    assert verdict(text) == label


def test_a_model_that_wins_all_is_rated_infinitely():
    found = ratings(
        [Battle("a", "base", 1.0)] * 3 + [Battle("b", "base", 1.0), Battle("b", "base", 0.0)], "base"
    )
    assert found["a"] == math.inf and found["b"] == pytest.approx(1000.0)
    assert win_rate(math.inf) == 100.0 and win_rate(-math.inf) == 0.0


@pytest.mark.parametrize(
    "row, said",
    [
        ({"winner": "me"}, "winner"),
        ({"winner": ["model_a"]}, "winner"),
        ({"model_a": "y"}, "two models"),
        ({"model_b": None}, "two models"),
    ],
)
def test_bad_battles_are_refused(row, said):
    rows = [{"model_a": "x", "model_b": "y", "winner": "tie"}]
    with pytest.raises(BadInput, match=said):
        score_battles([*rows, {**rows[0], **row}], system="x", baseline="y")


def test_nonsense_judgments_are_counted_or_refused():
    rows = [{"id": n, "judgement_gen_base": "?", "judgement_base_gen": "Both are fine."} for n in range(3)]
    with pytest.raises(BadInput, match="nothing to score"):
        score_judgments(rows)
    rows[0]["judgement_gen_base"] = "[[A>B]]"
    assert score_judgments(rows).measures["score"].failed == 5
    with pytest.raises(BadInput, match="two games"):
        score_judgments([{"uid": "1", "games": []}])


def both(games):
    return {"uid": str(games), "games": [None if one is None else {"score": one} for one in games]}


def test_games_are_counted_as_arena_hard_auto_counts_them():
    rows = [both(["A<B", "B<A"]) | {"uid": str(n)} for n in range(4)]
    rows += [both(["A>>B", "B>>A"]), both(["B=A", "A<<B"]), both([None, "A>>B"]), both(["C", "A>B"])]
    scored = score_judgments(rows)
    score = scored.measures["score"]
    # Eight battles won, six lost, one tied and three lost; a row with a null counts for neither of its games.
    assert score.value == pytest.approx(100 * 8.5 / 18, abs=1e-6)
    assert (score.n, score.failed) == (18, 4) and "verdicts:arena-hard-auto" in score.signature
    assert [row["failed"] for row in scored.rows] == [None] * 6 + ["no verdict"] * 2


@pytest.mark.parametrize("field", ["model", "judge"])
def test_judgments_of_several_are_refused(field):
    rows = [both(["A>B", "B>A"]) | {"uid": str(n), field: f"m{n}"} for n in range(2)]
    with pytest.raises(BadInput, match=f"several {field}s: m0, m1"):
        score_judgments(rows)


def test_what_no_battles_compare_is_refused():
    rows = [{"model_a": "x", "model_b": "y", "winner": "model_a"}] * 6
    rows += [{"model_a": "gpt-4-0314", "model_b": "z", "winner": "tie"}] * 6
    with pytest.raises(BadInput, match="no battles lead from 'x' to the baseline 'gpt-4-0314'"):
        score_battles(rows, system="x", baseline=None)
    assert score_battles(rows, system="z", baseline=None).measures["score"].value == pytest.approx(50.0)


def test_a_resample_that_links_no_battles_is_left_out_of_the_interval():
    # One battle of four links x to the baseline, by way of y: many resamples have it not.
    rows = [{"model_a": "x", "model_b": "y", "winner": "model_a"}] * 3
    rows += [{"model_a": "y", "model_b": "base", "winner": "model_a"}]
    measures = score_battles(rows, system="x", baseline="base").measures
    assert measures["elo"].interval == (10000.0, 10000.0) and measures["score"].interval == (100.0, 100.0)


@pytest.mark.parametrize(
    "rows",
    [
        [{"uid": "1", "games": ["A>B", "B>A"]}],
        [{"uid": "1", "games": [{"score": ["A>B"]}, {"score": "B>A"}]}],
        [{"uid": "1", "games": [{"verdict": "A>B"}, {"score": "B>A"}]}],
        [{"uid": "1", "games": "A>B"}],
    ],
)
def test_malformed_games_are_refused(rows):
    with pytest.raises(BadInput, match="judgment '1'"):
        score_judgments(rows)
