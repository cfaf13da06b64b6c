"""Outputs of a task's own problems: failures of every kind are counted."""

import json

import pytest

from toa_exp.errors import BadInput
from toa_exp.metrics.answers import ExactMatch
from toa_exp.scoring.outputs import score_outputs
from toa_exp.tasks.questions import Questions
from toa_exp.tasks.translation import Translation


def questions(tmp_path, references, judge):
    path = tmp_path / "questions.jsonl"
    rows = [{"id": n, "prompt": f"Question {n}?", "reference": given} for n, given in enumerate(references)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"each_draft": "{draft}", "templates": {"direct": [{"role": "user", "content": "{prompt}"}]}}
    fields = {"id": "id", "prompt": "prompt", "reference": "reference"}
    return Questions(prompts=prompts, fields=fields, judge=judge, path=str(path))


def outputs(*given):
    return [{"id": n, "output": output} for n, output in enumerate(given)]


def test_an_answer_that_cannot_be_verified_is_counted(tmp_path):
    pytest.importorskip("math_verify")
    from toa_exp.metrics.math import MathVerify

    task = questions(tmp_path, ["5", "6"], MathVerify(timeout=2.0))
    scored = score_outputs(outputs(r"\boxed{9^{9^{9^{9^{9}}}}!}", "Answer: 6"), task)
    assert (scored.measures["accuracy"].value, scored.measures["accuracy"].failed) == (0.5, 1)
    assert [row["failed"] for row in scored.rows] == ["not verified", None]


def test_failed_samples_are_counted_by_every_metric(tmp_path):
    task = questions(tmp_path, ["5", "6"], ExactMatch())
    scored = score_outputs(outputs(["Answer: 5", None], [None, ""]), task)
    assert {name: measure.failed for name, measure in scored.measures.items()} == dict.fromkeys(
        ["accuracy", "pass@1", "pass@2"], 3
    ) | {"majority_vote": scored.measures["majority_vote"].failed}
    assert [row["failed"] for row in scored.rows] == [None, "empty"]


def translation(tmp_path, rows, **options):
    path = tmp_path / "segments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"each_draft": "{draft}", "templates": {"direct": [{"role": "user", "content": "{prompt}"}]}}
    languages = {"de": "German", "en": "English"}
    return Translation(pair="de-en", prompts=prompts, languages=languages, path=str(path), **options)


def segments(*references, source="Ein Satz."):
    return [{"id": n, "src": source, "refs": given} for n, given in enumerate(references)]


@pytest.mark.parametrize("reference", [None, 5])
def test_a_reference_that_is_no_text_is_refused(tmp_path, reference):
    task = translation(tmp_path, segments({"A": "One."}, {"A": reference}))
    with pytest.raises(BadInput, match="give a text"):
        score_outputs(outputs("One.", "Two."), task)


def test_metrics_of_translations_have_sacrebleus_signatures(tmp_path):
    task = translation(tmp_path, segments({"A": "One sentence.", "B": "A sentence."}), reference="A")
    measures = score_outputs(outputs("One sentence."), task).measures
    assert measures["bleu"].signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert measures["chrf"].signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6")
    task = translation(tmp_path, segments({"A": "One sentence.", "B": "A sentence."}))
    assert score_outputs(outputs("One."), task).measures["bleu"].signature.startswith("nrefs:2|")


def test_a_segment_without_source_is_scored_and_not_failed(tmp_path):
    rows = segments({"A": "One sentence here."}, {"A": "Another sentence here."})
    rows[1]["src"] = " "
    task = translation(tmp_path, rows)
    measure = score_outputs(outputs("One sentence here.", ""), task).measures["chrf"]
    assert (measure.n, measure.failed) == (2, 0) and measure.value < 100
    assert score_outputs(outputs("One sentence here."), task).measures["chrf"].n == 2


def test_a_majority_of_equal_answers_wins_and_no_answer_is_counted(tmp_path):
    pytest.importorskip("math_verify")
    from toa_exp.metrics.math import MathVerify

    task = questions(tmp_path, ["5", "5", "5", "5"], MathVerify())
    given = outputs(
        ["4", "5", "5", "5"],
        ["It is $4$.", "We get $5$.", "So $5$ it is."],
        [r"\boxed{4}", r"\boxed{4}", r"\boxed{5}", r"\boxed{\frac{10}{2}}", r"\boxed{5.0}"],
        ["I do not know", "no idea at all", None],
    )
    measures = score_outputs(given, task).measures
    assert (measures["majority_vote"].value, measures["majority_vote"].failed) == (0.75, 1)
    assert measures["majority_vote"].n == 4 and "judge:math-verify" in measures["majority_vote"].signature


def test_an_exact_majority_is_of_what_accuracy_compares(tmp_path):
    task = questions(tmp_path, ["5"], ExactMatch())
    assert (
        score_outputs(outputs(["4", "5", "Answer: 5.0", " 5 "]), task).measures["majority_vote"].value == 1.0
    )
