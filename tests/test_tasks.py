"""Tasks: data from files, prompts, final answers."""

import asyncio
import gzip
import json

import pytest
from omegaconf import OmegaConf

import toa_exp.cli
from toa_exp.build import build
from toa_exp.core import Problem
from toa_exp.errors import BadInput
from toa_exp.metrics.answers import ExactMatch, final_answer, normalise
from toa_exp.tasks.base import Prompts


def task(name="jsonl", **changes):
    config = OmegaConf.load(toa_exp.cli.CONF / "task" / f"{name}.yaml")
    return build(OmegaConf.merge(config, changes), "task")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_gsm8k_from_the_fields_of_the_hub(shared):
    path = str(shared / "data" / "math" / "gsm8k_test.jsonl")
    gsm8k = task("gsm8k", path=path)
    assert gsm8k.count() == 660
    first = next(gsm8k.problems())
    assert first.prompt.startswith("Janet") and first.reference == "18" and first.id == "0"
    for problem in gsm8k.problems():
        assert problem.reference.replace(",", "") == problem.meta["final"]


def test_math500_from_the_fields_of_the_hub(shared):
    math500 = task("math500", path=str(shared / "data" / "math" / "math500.jsonl"), limit=3)
    problems = list(math500.problems())
    assert math500.count() == 3 == len(problems)
    assert problems[0].id == "test/algebra/988.json" and problems[0].reference == "11"


def test_limits_ids_and_compressed_files(tmp_path):
    rows = [{"id": i, "prompt": f"p{i}", "reference": i} for i in range(5)]
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [p.id for p in task(path=str(path), limit=2).problems()] == ["0", "1"]
    assert [p.id for p in task(path=str(path), ids=["3", 1]).problems()] == ["1", "3"]
    with pytest.raises(BadInput, match="no problem with id 9"):
        task(path=str(path), ids=[9]).count()


def test_a_byte_order_mark_and_a_missing_ending_are_of_no_account(tmp_path):
    content = b"\xef\xbb\xbf" + json.dumps({"id": "a", "prompt": "p"}).encode() + b"\r\n"
    for name, written in [("q.jsonl", content), ("q", gzip.compress(content))]:
        (tmp_path / name).write_bytes(written)
        assert [p.id for p in task(path=str(tmp_path / name)).problems()] == ["a"]
    (tmp_path / "q").write_bytes(gzip.compress(content)[:10] + b"\xff" * 40)
    with pytest.raises(BadInput, match="cannot be read"):
        task(path=str(tmp_path / "q")).count()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}], "'1' occurs twice"),
        ([{"question": "a"}], r"task\.fields\.prompt"),
        ([{"prompt": "  "}], "row 1"),
        ([{"prompt": "a", "reference": 1}, {"prompt": "b"}], "1 of 2 problems have no 'reference'"),
        ([], "no problems"),
        ([7], "line 1 is no JSON object"),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path, rows, message):
    with pytest.raises(BadInput, match=message):
        task(path=write(tmp_path / "q.jsonl", rows)).count()


def test_a_file_that_is_no_json_lines_is_named_with_the_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(BadInput, match="line 2 is no JSON"):
        task(path=str(path)).count()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        task(path=str(path)).count()
    with pytest.raises(BadInput, match="no such file"):
        task(path=str(tmp_path / "none.jsonl")).count()


def test_a_reference_that_does_not_match_its_pattern_is_named(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "a", "answer": "no mark"}])
    with pytest.raises(BadInput, match="reference_pattern"):
        task("gsm8k", path=path).count()


def test_without_references_there_is_no_metric(tmp_path):
    free = task(path=write(tmp_path / "q.jsonl", [{"prompt": "a"}]))
    assert free.count() == 1
    assert asyncio.run(free.score(next(free.problems()), "text")) == {}


@pytest.mark.parametrize("name", ["jsonl", "gsm8k", "math500"])
def test_templates_hold_what_they_are_given(name, tmp_path):
    any_task = task(name, path=str(tmp_path / "q.jsonl"))
    problem = Problem("p", "Why {draft} is {prompt}?")
    (direct,) = any_task.render(problem, "direct", [])
    (refine,) = any_task.render(problem, "refine", ["first {prompt} draft"])
    (aggregate,) = any_task.render(problem, "aggregate", ["one", "two {drafts}"])
    assert problem.prompt in direct["content"]
    assert "first {prompt} draft" in refine["content"] and problem.prompt in refine["content"]
    assert "1]\none" in aggregate["content"] and "2]\ntwo {drafts}" in aggregate["content"]
    with pytest.raises(BadInput, match="Did you mean 'refine'"):
        any_task.render(problem, "refin", ["x"])


def test_a_template_that_cannot_be_filled_is_refused():
    prompts = Prompts({"direct": [{"role": "user", "content": "{prompt} {meta.level} {draft}"}]}, "")
    with pytest.raises(BadInput, match="meta"):
        prompts.render(Problem("p", "x"), "direct", [])
    with pytest.raises(BadInput, match="draft"):
        prompts.render(Problem("p", "x", meta={"level": 3}), "direct", [])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\nAnswer: 42", "42"),
        ("Answer: 1\nno, wait\n**Final answer:** 2**", "2"),
        (r"thus \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"Answer: \boxed{7}", "7"),
        (r"\boxed{never closed", None),
        ("no mark", None),
        ("**Answer**: 42", "42"),
        ("## Answer: **42**", "42"),
        ("The final answer: 42", "42"),
        ("The answer is 42", "42"),
        ("Answer: 42\nAnswers are rounded to whole numbers.", "42"),
        ("Answer the question first.", None),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,250.00", "1250"), ("  Blue Whale.", "blue  whale"), ("$-0.50$", "-.5"), ("-0", "0")],
)
def test_normalised_answers_are_equal(one, other):
    assert normalise(one) == normalise(other)


def test_exact_match():
    judge = ExactMatch()
    for reference, text, right in [("5", "I think\nAnswer: 5.0", True), ("5", "5", True), ("5", "55", False)]:
        assert asyncio.run(judge.correct(reference, text)) is right
