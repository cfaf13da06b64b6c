"""`toa-exp score` as a user calls it: one JSON object, exit statuses, every form of file."""

import json

import pytest
from helpers import cli

from toa_exp.commands.score import _rewritten

ROWS = [
    {
        "id": n,
        "src": f"Satz {n}.",
        "refs": {"A": f"This is sentence {n}."},
        "hyps": {"s": f"This is sentence {n}."},
    }
    for n in range(5)
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(result):
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for measure in found.values():
        assert {"value", "interval", "n", "failed", "signature"} <= measure.keys()
    return found


def test_translations_print_one_object_and_nothing_else(tmp_path):
    written(tmp_path / "wmt22.de-en.jsonl", ROWS)
    found = scored(
        cli("score", "task=wmt22.de-en", "outputs=wmt22.de-en.jsonl", "rows=rows.jsonl", cwd=tmp_path)
    )
    assert found["bleu"]["value"] == pytest.approx(100.0) and found["chrf"]["n"] == 5
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "wmt22.de-en.jsonl"]


def test_a_pair_and_a_list_are_as_one_would_write_them():
    assert _rewritten("task=wmt23_zh_en") == ["task=wmt23", "task.pair=zh-en"]
    assert _rewritten("task=wmt22") == ["task=wmt22"]
    assert _rewritten("k=1,10") == ["k=[1,10]"]
    assert _rewritten("reference=A,B") == ["reference=[A,B]"]


def test_answers_are_scored_by_the_tasks_own_references(tmp_path, questions):
    outputs = [{"id": f"q{i}", "output": f"Answer: {2 * i + (i == 3)}"} for i in range(12)]
    outputs[5]["output"] = None
    written(tmp_path / "mine.jsonl", outputs)
    common = ["score", "task=jsonl", f"task.path={questions}", "outputs=mine.jsonl"]
    found = scored(cli(*common, cwd=tmp_path))
    assert found["accuracy"]["value"] == pytest.approx(10 / 12)
    assert (found["accuracy"]["n"], found["accuracy"]["failed"]) == (12, 1)
    for bad, said in [
        (outputs[1:], "missing"),
        ([*outputs, outputs[0]], "more than once"),
        ([*outputs, {"id": "new", "output": "1"}], "none of the task's"),
    ]:
        written(tmp_path / "mine.jsonl", bad)
        result = cli(*common, cwd=tmp_path)
        assert result.returncode == 2 and said in result.stderr and not result.stdout


def test_samples_of_a_problem_give_coverage_and_majority_vote(tmp_path, questions):
    samples = [["Answer: 0", "Answer: 1", "Answer: 0"]] + [
        ["Answer: 7", "Answer: 7", f"Answer: {2 * i}"] for i in range(1, 12)
    ]
    written(tmp_path / "mine.jsonl", [{"id": f"q{i}", "output": s} for i, s in enumerate(samples)])
    found = scored(cli("score", "task=jsonl", f"task.path={questions}", "outputs=mine.jsonl", cwd=tmp_path))
    assert found["pass@3"]["value"] == 1.0
    assert (
        found["pass@1"]["value"]
        == pytest.approx(found["accuracy"]["value"])
        == pytest.approx((2 / 3 + 11 / 3) / 12)
    )
    assert found["majority_vote"]["value"] == pytest.approx(1 / 12)


def test_references_are_chosen_of_outputs_too(tmp_path):
    both = [{**row, "refs": {**row["refs"], "B": f"That is sentence {row['id']}."}} for row in ROWS]
    written(tmp_path / "set.de-en.jsonl", both)
    written(tmp_path / "mine.jsonl", [{"id": row["id"], "output": row["refs"]["A"]} for row in both])
    common = ["score", "task=wmt22.de-en", "task.path=set.de-en.jsonl", "outputs=mine.jsonl"]
    values = [
        scored(cli(*common, *chosen, cwd=tmp_path))["bleu"]["value"]
        for chosen in (["reference=A"], ["task.reference=B"], ["reference=B"], ["reference=A,B"])
    ]
    assert values[0] == values[3] == pytest.approx(100.0) and values[1] == values[2] < 100.0
    result = cli(*common, "reference=C", cwd=tmp_path)
    assert result.returncode == 2 and "A, B" in result.stderr
    written(tmp_path / "q.jsonl", [{"id": 0, "prompt": "p", "reference": "r"}])
    common = ["score", "task=jsonl", "task.path=q.jsonl", "outputs=mine.jsonl"]
    result = cli(*common, "reference=A", cwd=tmp_path)
    assert result.returncode == 2 and "reference=A" in result.stderr


def test_a_file_that_does_not_fit_the_task_is_refused_with_the_forms_that_do(tmp_path):
    written(tmp_path / "x.jsonl", ROWS)
    result = cli("score", "task=math500", "outputs=x.jsonl", cwd=tmp_path)
    assert result.returncode == 2 and "gold, pred" in result.stderr and not result.stdout
    result = cli("score", "task=wmt22", "outputs=none.jsonl", cwd=tmp_path)
    assert result.returncode == 2 and "no such file" in result.stderr


def alpaca(tmp_path, count=805):
    """AlpacaEval's two files: outputs and their annotations, in another order."""
    rows = [
        {"instruction": f"Question {n}?", "output": "y" * (n % 50 + 1), "generator": "mine", "dataset": "d"}
        for n in range(count)
    ]
    judged = [
        {
            "instruction": r["instruction"],
            "output_1": "x" * (n % 37 + 1),
            "output_2": r["output"],
            "generator_1": "base",
            "generator_2": "mine",
            "annotator": "judge",
            "preference": 1.0 + (n % 3) / 2,
        }
        for n, r in enumerate(rows)
    ]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    return judged[::-1]


def test_alpaca_evals_outputs_are_joined_with_their_annotations(tmp_path, shared):
    pytest.importorskip("alpaca_eval")
    judged = alpaca(tmp_path)
    command = [
        "score",
        "task=alpaca_eval",
        "outputs=model_outputs.json",
        "annotations=annotations.json",
        f"references={shared / 'data/alpaca_eval'}",
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(judged[1:]))
    result = cli(*command, cwd=tmp_path)
    found = scored(result)
    assert (found["win_rate"]["n"], found["win_rate"]["failed"]) == (804, 1)
    assert found["win_rate"]["value"] == pytest.approx(50.0, abs=0.1)
    assert 0 < found["lc_win_rate"]["value"] < 100 and "reconstruction" in result.stderr
    for change, said in [
        ({"output_2": "other"}, "another output"),
        ({"instruction": "New?"}, "no"),
        ({"preference": "good"}, "no number"),
        ({"instruction": None}, "annotation 1 has no 'instruction'"),
    ]:
        (tmp_path / "annotations.json").write_text(json.dumps([{**judged[0], **change}, *judged[1:]]))
        result = cli(*command, cwd=tmp_path)
        assert result.returncode == 2 and said in result.stderr, result.stderr
    result = cli(*command, "task.limit=10", cwd=tmp_path)
    assert result.returncode == 2 and "task.path" in result.stderr


def test_a_model_of_battles_may_be_called_a_number(tmp_path):
    written(tmp_path / "battles.jsonl", [{"model_a": "2023", "model_b": "2022", "winner": "tie"}] * 2)
    common = ["score", "task=arena_hard", "outputs=battles.jsonl"]
    assert scored(cli(*common, "system=2023", "baseline=2022", cwd=tmp_path))["score"]["value"] == 50.0


@pytest.mark.parametrize("limit", ["-3", "0", "1.5"])
def test_a_limit_that_is_no_number_of_rows_is_refused(tmp_path, limit):
    written(tmp_path / "wmt22.de-en.jsonl", ROWS)
    result = cli(
        "score", "task=wmt22.de-en", "outputs=wmt22.de-en.jsonl", f"task.limit={limit}", cwd=tmp_path
    )
    assert result.returncode == 2 and "1 or more" in result.stderr and not result.stdout


def test_a_limit_and_ids_are_of_counts_too_and_never_ignored(tmp_path):
    written(tmp_path / "counts.jsonl", [{"problem": f"p{n}", "n": 2, "c": n % 2} for n in range(10)])
    common = ["score", "task=math500", "outputs=counts.jsonl"]
    assert scored(cli(*common, "task.limit=4", cwd=tmp_path))["pass@1"]["n"] == 4
    assert scored(cli(*common, "task.ids=[p1,p3]", cwd=tmp_path))["pass@1"]["value"] == 0.5
    result = cli(*common, "task.ids=[p1,new]", cwd=tmp_path)
    assert result.returncode == 2 and "new" in result.stderr
    table = {"instruction_id": 0, "len_baseline": 1, "len_model": 1, "preference": 1}
    written(tmp_path / "table.jsonl", [table])
    result = cli("score", "task=alpaca_eval", "outputs=table.jsonl", "task.limit=1", cwd=tmp_path)
    assert result.returncode == 2 and "task.limit" in result.stderr
