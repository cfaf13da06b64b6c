"""AlpacaEval's win rates: the leaderboard's numbers, joins, and judgements that failed."""

import csv
import gzip
import json
import random
from importlib.metadata import version

import pytest
from omegaconf import OmegaConf

from toa_exp.errors import BadInput
from toa_exp.metrics import length_control
from toa_exp.metrics.length_control import (
    INSTRUCTIONS,
    Comparison,
    by_answer,
    instruction_number,
    length_controlled,
    reference_file,
)
from toa_exp.scoring.alpaca import score_annotations
from toa_exp.scoring.files import read
from toa_exp.scoring.preferences import from_annotations, from_table, score_preferences
from toa_exp.stats import bootstrap_means

ROWS = [
    {"instruction_id": str(n), "len_baseline": "100", "len_model": "90", "preference": p}
    for n, p in enumerate(["1.25", "2", "1.5", "0"])
]


@pytest.fixture
def no_lc(monkeypatch):
    """Only the win rate, without the package of the regression."""
    monkeypatch.setattr(length_control, "_from_hub", lambda: (_ for _ in ()).throw(BadInput("no hub")))


def test_win_rate_standard_error_and_draws(no_lc):
    scored = score_preferences(from_table(ROWS), None, expected=4)
    rate = scored.measures["win_rate"]
    assert rate.value == pytest.approx(100 * (0.25 + 1 + 0.5 + 0.5) / 4)
    assert rate.more["n_draws"] == 2 and (rate.n, rate.failed) == (4, 0)
    assert scored.measures["win_rate_se"].value == pytest.approx(15.7288, abs=1e-3)
    assert scored.measures["lc_win_rate"].value is None
    assert "no hub" in scored.measures["lc_win_rate"].more["error"]


def test_failed_and_missing_judgements_are_counted(no_lc, caplog):
    rows = [*ROWS, {**ROWS[0], "instruction_id": "7", "preference": ""}]
    rate = score_preferences(from_table(rows), None, expected=6).measures["win_rate"]
    assert (rate.n, rate.failed) == (4, 2)
    assert "2 of 6 comparisons have no judgement" in caplog.text
    with pytest.raises(BadInput, match="nothing to score"):
        score_preferences(from_table([{**row, "preference": "nan"} for row in ROWS]), None)


def test_an_empty_output_that_was_judged_counts_as_failed_too(no_lc, caplog):
    scored = score_preferences(from_table([{**ROWS[0], "len_model": "0"}, *ROWS[1:]]), None, expected=4)
    rate = scored.measures["win_rate"]
    assert rate.value == pytest.approx(100 * (0.25 + 1 + 0.5 + 0.5) / 4)
    assert (rate.n, rate.failed) == (4, 1)
    assert [row["failed"] for row in scored.rows] == ["empty", None, None, None]
    assert "1 outputs are empty" in caplog.text


@pytest.mark.parametrize(
    "change, said",
    [
        ({"instruction_id": "0"}, "more than once"),
        ({"instruction_id": "805"}, "0 to 804"),
        ({"instruction_id": "x"}, "no number"),
        ({"preference": "2.5"}, "from 1"),
        ({"preference": "0.5"}, "from 1"),
        ({"preference": "better"}, "no number"),
        ({"preference": "inf"}, "not finite"),
        ({"len_model": ""}, "no integer"),
        ({"len_model": "-1"}, "0 or more"),
    ],
)
def test_bad_rows_are_refused(change, said):
    with pytest.raises(BadInput, match=said):
        from_table([*ROWS, {**ROWS[0], "instruction_id": "9", **change}])


def annotations(count):
    return [
        {
            "instruction": f"Question {n}?",
            "output_1": "x" * (n + 5),
            "output_2": "y" * (2 * n + 1),
            "preference": 1.0 + n % 2,
            "generator_1": "gpt4_1106_preview",
            "generator_2": "mine",
            "annotator": "judge",
        }
        for n in range(count)
    ]


def test_annotations_are_joined_by_instruction():
    numbers = {f"Question {n}?": n for n in range(10)}
    found = from_annotations(annotations(10)[::-1], numbers)
    assert found[0] == Comparison(9, 14, 19, 2.0)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"generator_2": "another"}, "several generator_2"),
        ({"output_2": None}, "no 'output_2'"),
        ({"instruction": "Question 1?"}, "more than once"),
        ({"instruction": "New?"}, "none of the instructions"),
        ({"preference": [1]}, "no number"),
    ],
)
def test_malformed_annotations_are_refused(change, said):
    rows = annotations(3)
    rows[2] |= change
    with pytest.raises(BadInput, match=said):
        from_annotations(rows, {f"Question {n}?": n for n in range(3)})


def test_the_folder_of_references_says_what_it_holds(tmp_path, caplog):
    with pytest.raises(BadInput, match="df_gamed"):
        reference_file(tmp_path)
    header = "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model\n"
    table = header + "".join(f"0.5,{n},0.1,0.2,False,gamed\n" for n in range(805))
    (tmp_path / "df_gamed_reconstructed.csv").write_text(table)
    assert reference_file(tmp_path).name == "df_gamed_reconstructed.csv"
    assert "is a reconstruction" in caplog.text
    (tmp_path / "df_gamed.csv").write_text(table)
    assert reference_file(tmp_path).name == "df_gamed.csv"
    cut = table[: table.index("0.5,800,")]
    for content, said in [("", "empty"), ("a,b\n1,2\n", "no column preference"), (cut, "no row of 5 of")]:
        (tmp_path / "df_gamed.csv").write_text(content)
        with pytest.raises(BadInput, match=said):
            reference_file(tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        reference_file(tmp_path / "none")


def versions():
    """Whether the package and scikit-learn are those of the recorded values."""
    return version("alpaca-eval") == "0.6.6" and version("scikit-learn") == "1.9.1"


@pytest.fixture
def alpaca(shared):
    pytest.importorskip("alpaca_eval")
    return shared / "data/alpaca_eval"


def test_win_rates_are_those_of_the_leaderboard(alpaca):
    expected = json.loads((alpaca / "expected.json").read_text())["models"]
    for model, values in expected.items():
        comparisons = from_table(read(alpaca / f"preferences/{model}.csv.gz", "outputs"))
        gamed = reference_file(alpaca)
        made = length_controlled(comparisons, gamed, by_row=len(comparisons) < INSTRUCTIONS, refits=2)
        lc = values["recomputed_lc"]["new"]["lc_winrate"]
        # Cross-validation may choose another strength of regularisation with other versions.
        assert made.rate == pytest.approx(lc, abs=1e-4 if versions() else 0.16)
        assert made.rate == pytest.approx(
            values["official_leaderboard"]["length_controlled_winrate"], abs=0.16
        )


def test_the_join_by_instruction_is_said_and_so_is_the_packages(alpaca):
    comparisons = from_table(read(alpaca / "preferences/text_davinci_001.csv.gz", "outputs"))
    scored = score_preferences(comparisons, alpaca)
    expected = json.loads((alpaca / "expected.json").read_text())["models"]["text_davinci_001"]
    measures = scored.measures
    assert (measures["win_rate"].n, measures["win_rate"].failed) == (803, 2)
    official = expected["official_leaderboard"]
    assert measures["win_rate"].value == pytest.approx(official["win_rate"], abs=1e-6)
    assert measures["win_rate_se"].value == pytest.approx(official["standard_error"], abs=1e-6)
    by_instruction = expected["lc_if_difficulty_is_joined_by_instruction_id"]["lc_winrate"]
    assert measures["lc_win_rate"].value == pytest.approx(by_instruction, abs=0.16)
    assert measures["lc_win_rate_by_row"].value == pytest.approx(
        official["length_controlled_winrate"], abs=0.16
    )
    assert "difficulty:by_instruction" in measures["lc_win_rate"].signature


def test_an_unjudged_comparison_is_left_out_of_the_fit_and_of_no_mean(alpaca):
    from alpaca_eval.metrics import glm_winrate

    rows = read(alpaca / "preferences/claude-2.csv.gz", "outputs")
    for row in rows[:50]:
        row["preference"] = ""
    comparisons = from_table(rows)
    scored = score_preferences(comparisons, alpaca)
    lc, rate = scored.measures["lc_win_rate"], scored.measures["win_rate"]
    assert (rate.n, rate.failed) == (755, 50) and (lc.n, lc.failed) == (805, 50)
    assert "over:all_rows" in lc.signature and lc.interval[0] < lc.value < lc.interval[1]
    made = pandas_annotations(comparisons)
    with length_control._reading(glm_winrate, reference_file(alpaca)):
        found = glm_winrate.get_length_controlled_winrate(made, save_weights_dir=None)
    assert lc.value == pytest.approx(found["length_controlled_winrate"], abs=1e-9)
    assert lc.more["standard_error"] == pytest.approx(found["lc_standard_error"], abs=1e-9)


def pandas_annotations(comparisons):
    """Annotations as the package reads them."""
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(
        {
            "preference": [float("nan") if c.preference is None else c.preference for c in comparisons],
            "output_1": ["x" * c.baseline_length for c in comparisons],
            "output_2": ["y" * c.length for c in comparisons],
            "generator_1": "baseline",
            "generator_2": "model",
            "annotator": "judge",
        }
    )


def test_the_parts_of_answers_make_the_rate_and_its_interval(alpaca):
    comparisons = from_table(read(alpaca / "preferences/claude-2.csv.gz", "outputs"))
    refitted = length_controlled(comparisons, reference_file(alpaca))
    values, made = by_answer(comparisons[::-1], reference_file(alpaca))
    (mean,), (lower,), (upper,) = bootstrap_means(values[::-1].reshape(-1, 1))
    assert mean == pytest.approx(refitted.rate, abs=1e-9)
    assert (lower, upper) == pytest.approx(refitted.interval, abs=0.5)
    assert made["difficulty"] == "by_instruction"
    with pytest.raises(BadInput, match="cannot be fitted"):
        by_answer([Comparison(n, 5, 7, 1.5) for n in range(9)], reference_file(alpaca))


def instructions_of(alpaca):
    with gzip.open(alpaca / "instructions_and_baseline.jsonl.gz", "rt") as file:
        return [json.loads(line)["instruction"] for line in file]


def test_instructions_are_known_by_their_digests(alpaca):
    instructions = instructions_of(alpaca)
    assert [instruction_number(one) for one in instructions] == list(range(INSTRUCTIONS))
    assert instruction_number(instructions[7] + "\n") == 7
    assert instruction_number("Who are you?") is None


@pytest.fixture
def judged_model(alpaca, tmp_path):
    """Annotations and outputs of gemma-7b-it, shuffled, with its length-controlled win rate."""
    instructions = instructions_of(alpaca)
    annotations = [
        {
            "instruction": instructions[c.instruction],
            "output_1": "x" * c.baseline_length,
            "output_2": "y" * c.length,
            "preference": c.preference,
        }
        for c in from_table(read(alpaca / "preferences/gemma-7b-it.csv.gz", "outputs"))
    ]
    random.Random(0).shuffle(annotations)
    return annotations


PROMPTS = {"templates": {"direct": [{"role": "user", "content": "{prompt}"}]}, "each_draft": "{draft}"}


def config(**task):
    return OmegaConf.create({"task": {"_target_": "toa_exp.tasks.instructions.AlpacaEval", **task}})


def test_the_order_of_annotations_and_outputs_is_of_no_account(alpaca, judged_model):
    expected = json.loads((alpaca / "expected.json").read_text())["models"]["gemma-7b-it"]["recomputed_lc"]
    outputs = [{"instruction": row["instruction"], "output": row["output_2"]} for row in judged_model]
    random.Random(1).shuffle(outputs)
    table = score_preferences(from_table(read(alpaca / "preferences/gemma-7b-it.csv.gz", "outputs")), alpaca)
    for given in (None, outputs):
        measures = score_annotations(judged_model, given, config(), alpaca).measures
        lc = measures["lc_win_rate"]
        assert lc.value == pytest.approx(expected["new"]["lc_winrate"], abs=1e-4 if versions() else 0.16)
        assert "difficulty:by_instruction" in lc.signature and "lc_win_rate_by_row" not in measures
        assert {name: m.interval for name, m in measures.items()} == {
            name: m.interval for name, m in table.measures.items()
        }


def test_a_subset_has_the_difficulties_of_its_instructions(alpaca, judged_model, tmp_path):
    part = judged_model[:400]
    (tmp_path / "part.json").write_text(
        json.dumps([{"instruction": row["instruction"], "output": row["output_1"]} for row in part[::-1]])
    )
    fields = {"id": "id", "prompt": "instruction", "reference": None}
    chosen = config(
        path=str(tmp_path / "part.json"),
        fields=fields,
        prompts=PROMPTS,
    )
    numbers = {row["instruction"]: instruction_number(row["instruction"]) for row in part}
    found = length_controlled(from_annotations(part, numbers), reference_file(alpaca), refits=2)
    measure = score_annotations(part, None, chosen, alpaca).measures["lc_win_rate"]
    assert measure.value == pytest.approx(found.rate, abs=1e-9)
    assert (measure.n, measure.failed) == (400, 0)


def test_instructions_that_are_not_alpaca_evals_have_a_difficulty_only_by_place(alpaca, caplog):
    lc = score_annotations(annotations(INSTRUCTIONS), None, config(), alpaca).measures["lc_win_rate"]
    assert "difficulty:by_place_in_the_file" in lc.signature and "none of AlpacaEval's" in caplog.text
    measures = score_annotations(annotations(10), None, config(), alpaca).measures
    assert measures["win_rate"].n == 10 and measures["lc_win_rate"].value is None


def test_a_preference_table_is_plain_csv(alpaca):
    path = alpaca / "preferences/claude-2.csv.gz"
    with gzip.open(path, "rt") as file:
        assert read(path, "outputs") == list(csv.DictReader(file))
