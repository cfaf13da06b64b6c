"""The tasks of the field: their data from local files, in the hub's fields, and what says where it is."""

import asyncio
import gzip
import json

import pytest
from helpers import cli, lines
from test_config import compose

from toa_exp.build import build
from toa_exp.errors import BadInput
from toa_exp.metrics.pooled import pools_of
from toa_exp.tasks import source

SEGMENTS = [
    {"id": n, "src": f"Das ist der Satz {n}.", "refs": {"A": f"This is sentence {n}.", "B": f"Sentence {n}."}}
    for n in range(5)
]


def task(*overrides):
    return build(compose(*overrides).task, "task")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_alpaca_eval_from_its_own_file(tmp_path):
    rows = [
        {"instruction": f"Do {n}.", "output": "Done.", "generator": "gpt", "dataset": "koala"}
        for n in range(4)
    ]
    path = tmp_path / "alpaca_eval_gpt4_baseline.json"
    path.write_text(json.dumps(rows))
    made = task("task=alpaca_eval", f"task.path={path}")
    assert made.count() == 4
    problem = list(made.problems())[3]
    assert (problem.id, problem.prompt, problem.meta["dataset"]) == ("3", "Do 3.", "koala")
    assert made.render(problem, "direct", [])[0]["content"] == "Do 3."
    assert asyncio.run(made.score(problem, "Done.")) == {}


def test_arena_hard_in_both_of_its_forms(tmp_path):
    rows = [
        {"uid": "a", "category": "arena-hard-v0.1", "cluster": "x", "prompt": "Why?"},
        {"question_id": "b", "category": "arena-hard-v0.1", "turns": [{"content": "How?"}]},
    ]
    made = task("task=arena_hard", f"task.path={write(tmp_path / 'question.jsonl', rows)}")
    assert made.count() == 2
    assert [(p.id, p.prompt) for p in made.problems()] == [("a", "Why?"), ("b", "How?")]


def test_arena_hard_has_its_500_questions(shared):
    path = shared / "data/arena_hard/question_v0.1.jsonl.gz"
    assert task("task=arena_hard", f"task.path={path}").count() == 500


def test_alpaca_eval_has_its_805_instructions(shared):
    path = shared / "data/alpaca_eval/instructions_and_baseline.jsonl.gz"
    assert task("task=alpaca_eval", f"task.path={path}").count() == 805


def test_ultrafeedback_prompts(tmp_path):
    rows = [{"prompt": "Hello", "prompt_id": "0a", "chosen": [], "rejected": []}]
    made = task("task=ultrafeedback", f"task.path={write(tmp_path / 'u.jsonl', rows)}")
    assert made.count() == 1 and next(made.problems()).id == "0a"


@pytest.mark.parametrize("name", ["alpaca_eval", "arena_hard", "ultrafeedback", "math500", "gsm8k"])
def test_the_hub_is_pinned_and_an_error_says_where_to_get_the_data(name, monkeypatch):
    def unreachable(hub):
        raise OSError("offline")

    monkeypatch.setattr(source, "_hub_file", unreachable)
    monkeypatch.setattr(source, "_hub_data", unreachable)
    config = compose(f"task={name}").task
    assert len(config.hub.revision) == 40
    with pytest.raises(
        BadInput, match="task.path=<file>: https://huggingface.co/datasets/" + config.hub.path
    ):
        build(config, "task").count()


def test_ids_come_from_a_list_or_a_file(tmp_path):
    path = write(tmp_path / "s.jsonl", SEGMENTS)
    for text in ("[3, 1]", "3\n1\n"):
        (tmp_path / "ids").write_text(text)
        made = task("task=wmt", "task.pair=de-en", f"task.path={path}", f"task.ids={tmp_path / 'ids'}")
        assert [problem.id for problem in made.problems()] == ["1", "3"]
    assert task("task=wmt", "task.pair=de-en", f"task.path={path}", "task.ids=[4]").count() == 1
    with pytest.raises(BadInput, match="no segment with id 9"):
        task("task=wmt", "task.pair=de-en", f"task.path={path}", "task.ids=[1,9]").count()


@pytest.mark.parametrize("pair", ["zh-en", "de-en"])
def test_the_papers_subset_has_200_segments(shared, pair):
    config = compose("task=wmt22_paper", f"task.pair={pair}").task
    ids = json.loads((shared / "data/wmt/toa_subset_ids.json").read_text())[pair]["200"]
    path = shared / f"data/wmt/wmt22.{pair}.jsonl.gz"
    found = task("task=wmt22_paper", f"task.pair={pair}", f"task.path={path}")
    assert list(config.ids[pair]) == ids and compose("task=wmt22_paper").task.pair == "zh-en"
    assert {problem.id for problem in found.problems()} == set(map(str, ids)) and found.count() == 200


def test_a_pair_that_the_papers_subset_does_not_have_is_refused():
    with pytest.raises(BadInput, match=r"'cs-en'\. Allowed: .*de-en.*zh-en|zh-en.*de-en"):
        task("task=wmt22_paper", "task.pair=cs-en", "task.path=segments.jsonl")


def test_bleu_and_chrf_of_answers_are_those_of_sacrebleu(shared):
    import numpy as np

    path = shared / "data/wmt/wmt23.de-en.jsonl.gz"
    made = task("task=wmt23", "task.pair=de-en", f"task.path={path}")
    with gzip.open(path, "rt") as file:
        hypotheses = [json.loads(line)["hyps"]["AIRC"] for line in file]

    async def judged():
        return [await made.score(p, h) for p, h in zip(made.problems(), hypotheses, strict=True)]

    scores = asyncio.run(judged())
    expected = json.loads((shared / "data/wmt/expected_bleu_chrf.json").read_text())["rows"]
    (row,) = [r for r in expected if (r["testset"], r["pair"], r["system"]) == ("wmt23", "de-en", "AIRC")]
    for name, pool in pools_of(made.pools).items():
        value = pool(np.array([score[name] for score in scores]))
        assert value == pytest.approx(row["chrf2" if name == "chrf" else name], abs=0.01)
    assert "tok:13a" in made.fingerprint()["bleu"]


def test_a_test_set_of_sacrebleus_index_is_read(tmp_path, monkeypatch):
    from sacrebleu.dataset import DATASETS

    xml = """<?xml version="1.0"?><dataset><doc id="d" origlang="de"><src lang="de"><p>
      <seg id="1">Guten Tag.</seg><seg id="2">Bis bald.</seg></p></src>
      <ref lang="en" translator="A"><p><seg id="1">Good day.</seg><seg id="2">See you.</seg></p></ref>
      <ref lang="en" translator="B"><p><seg id="1">Hello.</seg><seg id="2">Bye.</seg></p></ref>
      </doc></dataset>"""
    folder = tmp_path / "raw"
    monkeypatch.setattr(DATASETS["wmt22"], "_outdir", str(tmp_path))
    monkeypatch.setattr(DATASETS["wmt22"], "_rawdir", str(folder))
    path = folder / "wmt22-news-systems-1.1/xml/wmttest2022.de-en.all.xml"
    path.parent.mkdir(parents=True)
    path.write_text(xml)
    (folder / "wmt22.v1.1.tar.gz").write_bytes(b"here already")
    made = task("task=wmt22", "task.pair=de-en")
    assert [(p.id, p.prompt, p.reference) for p in made.problems()] == [
        ("0", "Guten Tag.", ["Good day."]),
        ("1", "Bis bald.", ["See you."]),
    ]
    text = made.render(next(made.problems()), "refine", ["Hello!"])[0]["content"]
    assert "German" in text and "English" in text and "Hello!" in text


def test_what_wmt_does_not_have_is_said(tmp_path, monkeypatch):
    from toa_exp.tasks import testsets

    with pytest.raises(BadInput, match="has no value"):
        task("task=wmt22")
    with pytest.raises(BadInput, match="a language pair reads like de-en"):
        task("task=wmt22", "task.pair=deen")
    with pytest.raises(BadInput, match="de-en"):
        task("task=wmt22", "task.pair=en-fr").count()

    class Unreachable:
        langpairs, data = ["de-en"], ["https://somewhere"]

        def get_source_file(self, pair):
            raise OSError("offline")

    monkeypatch.setitem(__import__("sacrebleu.dataset").dataset.DATASETS, "wmt22", Unreachable())
    with pytest.raises(BadInput, match="SACREBLEU"):
        list(testsets.segments("wmt22", "de-en"))


@pytest.mark.parametrize(
    "row, said",
    [
        ({"src": None, "refs": {"A": "x"}}, "src"),
        ({"src": "x", "refs": {}}, "refs"),
        ({"id": 1, "src": "x", "refs": {"A": "x"}}, "twice"),
    ],
)
def test_bad_segments_are_refused(tmp_path, row, said):
    path = write(tmp_path / "s.jsonl", [*SEGMENTS, row])
    with pytest.raises(BadInput, match=said):
        task("task=wmt", "task.pair=de-en", f"task.path={path}").count()


def test_a_run_on_translation_has_bleu_and_its_pair_in_its_folder(tmp_path):
    write(tmp_path / "s.jsonl", SEGMENTS)
    result = cli(
        "run",
        "task=wmt",
        "task.pair=de-en",
        "task.path=s.jsonl",
        "ensemble=simulated",
        "method=random",
        "reward=simulated",
        "budget.samples=[2]",
        "tracking.mode=disabled",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("results/*/wmt.de-en/*/random/seed=0/trajectories.jsonl")
    assert set(lines(path.read_text())[0]["metrics"]) == {"bleu", "chrf"}
    assert "bleu_lo" in (path.parent / "curve.csv").read_text()
