"""COMET itself on tiny checkpoints of the published kinds, against scores computed by hand."""

import asyncio
import csv
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from comet_by_hand import ByHand
from helpers import cli, lines

from toa_exp.comet.environment import python_of
from toa_exp.comet.scorer import Scorer, Settings
from toa_exp.errors import BadInput, Unavailable

pytestmark = pytest.mark.comet
TINY = Path(__file__).with_name("tiny_comet.py")
ENCODERS = {
    "regression_metric": "XLM-RoBERTa",
    "unified_metric": "XLM-RoBERTa",
    "xcomet_metric": "XLM-RoBERTa-XL",
}
WORDS = [
    "Haus",
    "Tische",
    "zwei",
    "Stühle",
    "und",
    "nicht",
    "fünf",
    "Uhr",
    "the",
    "chairs",
    "four",
    "12:30",
    "Äpfel",
]


@pytest.fixture(scope="session")
def python():
    try:
        return python_of(None, "metric")
    except BadInput as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny(python, tmp_path_factory):
    """A folder of encoders and checkpoints, whose encoders are named as on the hub."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([python, "-I", TINY, "make", folder], check=True, capture_output=True)
    return folder


def settings(tiny, kind, **more):
    return Settings(model=str(tiny / kind), encoder=str(tiny / ENCODERS[kind]), devices="cpu", **more)


def rows():
    """Sentences of all lengths, empty ones and some over the window among them."""
    rng = random.Random(0)

    def text():
        return " ".join(rng.choices(WORDS, k=rng.randrange(1, 20)))

    made = [{"src": text(), "mt": text(), "ref": text()} for _ in range(14)]
    made += [
        {"src": "four chairs", "mt": "", "ref": "vier Stühle"},
        {"src": "x", "mt": "y" * 100_000, "ref": "z"},
    ]
    return [*made, {"src": "a\0b", "mt": "\u202e\u05e9\u05dc\u05d5\u05dd 漢字", "ref": "\\frac{{{{"}]


def given(row, *, reference=True):
    return (row["src"], row["mt"], row["ref"] if reference else None)


def scored(made, whose="metric"):
    """The scores of requests by several settings in turn."""

    async def run():
        found = []
        for each, requests in made:
            scorer = Scorer(each, whose)
            try:
                found.append([one.score for one in await scorer.score_all(requests)])
            finally:
                await scorer.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ENCODERS)
def test_scores_are_those_computed_by_hand_and_do_not_depend_on_the_batch(tiny, kind):
    data = rows()
    requests = [given(row) for row in data]
    one, some = scored([(settings(tiny, kind, dtype="float64", max_batch=n), requests) for n in (1, 7)])
    assert one == some
    by_hand = ByHand(tiny / kind, tiny / ENCODERS[kind])
    assert one == pytest.approx([by_hand.score(row) for row in data], abs=1e-6)
    assert max(one) - min(one) > 0.1


@pytest.mark.parametrize("kind", ENCODERS)
def test_scores_are_those_of_comets_own_command(tiny, kind, python):
    data = rows()
    (ours,) = scored([(settings(tiny, kind, dtype="float32"), [given(row) for row in data])])
    stripped = [{name: text.strip() for name, text in row.items()} for row in data]
    done = subprocess.run(
        [python, "-I", TINY, "predict", tiny, kind],
        input=json.dumps(stripped), capture_output=True, text=True, check=True,
    )  # fmt: skip
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("SCORES ")]
    assert ours == pytest.approx(json.loads(said.removeprefix("SCORES ")), abs=1e-5)


def test_xcomet_without_references_is_its_quality_estimate(tiny):
    data = rows()
    requests = [given(row, reference=False) for row in data]
    (found,) = scored([(settings(tiny, "xcomet_metric", dtype="float64"), requests)])
    by_hand = ByHand(tiny / "xcomet_metric", tiny / "XLM-RoBERTa-XL")
    bare = [{"src": row["src"], "mt": row["mt"]} for row in data]
    assert found == pytest.approx([by_hand.score(row) for row in bare], abs=1e-6)


def test_the_spans_of_the_tiny_xcomet_are_not_all_alike(tiny, monkeypatch):
    seen = set()
    monkeypatch.setattr(
        ByHand,
        "_quality",
        staticmethod(lambda tags, real=ByHand._quality: seen.add(real(tags)) or real(tags)),
    )
    by_hand = ByHand(tiny / "xcomet_metric", tiny / "XLM-RoBERTa-XL")
    for row in rows():
        by_hand.score(row)
    assert len(seen) > 2


def test_a_checkpoint_that_lacks_a_weight_or_would_run_code_is_refused(tiny, tmp_path):
    for name in ("lacking", "hostile"):
        shutil.copytree(tiny / "unified_metric", tmp_path / name)
    path = tmp_path / "lacking" / "checkpoints" / "model.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved["state_dict"]["estimator.ff.3.weight"]
    torch.save(saved, path)
    torch.save({**saved, "callbacks": Hostile(tmp_path / "ran")}, tmp_path / "hostile/checkpoints/model.ckpt")
    for name, said in (
        ("lacking", r"no estimator\.ff\.3\.weight"),
        ("hostile", "would run code on loading .*system"),
    ):
        made = Settings(model=str(tmp_path / name), encoder=str(tiny / "XLM-RoBERTa"), devices="cpu")
        with pytest.raises(BadInput, match=said):
            scored([(made, [("a", "b", None)])])
    assert not (tmp_path / "ran").exists()


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_worker_that_is_killed_is_told_and_replaced(tiny):
    async def run():
        scorer = Scorer(settings(tiny, "unified_metric"), "reward")
        try:
            before = await scorer.score(("a", "b", None))
            (lane,) = scorer._lanes
            process = lane._worker._process
            slow = asyncio.gather(
                *(scorer.score(("a " * 400, f"{n} " * 400, None)) for n in range(200)), return_exceptions=True
            )
            await asyncio.sleep(0.2)
            os.kill(process.pid, signal.SIGKILL)
            ended = [one for one in await slow if isinstance(one, Exception)]
            after = await scorer.score(("a", "b", None))
            return before, ended, after
        finally:
            await scorer.close()

    before, ended, after = asyncio.run(run())
    assert ended and all(isinstance(error, Unavailable) for error in ended)
    assert "killed by signal 9" in str(ended[0])
    assert after.score == before.score


def overrides(tiny, what, kind):
    return [f"{what}.model={tiny / kind}", f"{what}.encoder={tiny / ENCODERS[kind]}", f"{what}.devices=cpu"]


def test_outputs_are_scored_by_the_command(tiny, tmp_path):
    data = rows()
    path = tmp_path / "outputs.en-de.jsonl"
    table = [
        {"id": n, "src": row["src"], "refs": {"A": row["ref"], "B": "x"}, "hyps": {"mine": row["mt"]}}
        for n, row in enumerate(data)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    score = ["score", "task=wmt22.en-de", f"outputs={path}", *overrides(tiny, "metric", "regression_metric")]
    result = cli(*score, "metric=comet", "reference=A", f"rows={tmp_path / 'rows.jsonl'}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    by_hand = ByHand(tiny / "regression_metric", tiny / "XLM-RoBERTa")
    each = [by_hand.score(row) for row in data]
    assert set(found) == {"bleu", "chrf", "comet"}
    assert found["comet"]["value"] == pytest.approx(sum(each) / len(each), abs=1e-6)
    assert (found["comet"]["n"], found["comet"]["failed"]) == (len(data), 1)
    decided = lines((tmp_path / "rows.jsonl").read_text())
    assert [row["comet"] for row in decided] == pytest.approx(each, abs=1e-6)
    result = cli(*score, "metric=comet", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "") and "reference=<label>" in result.stderr


def test_answers_without_references_are_scored_by_a_model_that_needs_none(tiny, tmp_path):
    sources = tmp_path / "sources.jsonl"
    sources.write_text("".join(json.dumps({"id": n, "prompt": f"{n} chairs"}) + "\n" for n in range(4)))
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"id": n, "output": f"{n} Stühle"}) + "\n" for n in range(4)))
    score = ["score", "task=jsonl", f"task.path={sources}", f"outputs={answers}"]
    result = cli(*score, "metric=cometkiwi", *overrides(tiny, "metric", "unified_metric"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)) == {"cometkiwi"}
    result = cli(*score, "metric=comet", *overrides(tiny, "metric", "regression_metric"), cwd=tmp_path)
    assert result.returncode == 2 and "'0' has none" in result.stderr


def test_a_run_selects_by_cometkiwi_and_is_measured_by_comet(tiny, tmp_path):
    kiwi = overrides(tiny, "reward", "unified_metric")
    run = ["run", "task=lab_translation", "task.problems=3", "ensemble=lab", "reward=cometkiwi", *kiwi,
           "method=parallel", "budget.samples=[4]", "tracking.mode=disabled"]  # fmt: skip
    result = cli(*run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = tmp_path.glob("results/default/lab_translation/lab/parallel/seed=0")
    records = lines((folder / "trajectories.jsonl").read_text())
    assert all(record["cost"]["reward_flops"] > 0 for record in records)
    assert len({sample["reward"] for record in records for sample in record["samples"]}) > 3
    again = cli(
        *run,
        "concurrency=1",
        "reward.max_batch=2",
        "store.path=other.sqlite",
        "experiment=again",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    (other,) = tmp_path.glob("results/again/lab_translation/lab/parallel/seed=0")
    for record in (*records, *(repeated := lines((other / "trajectories.jsonl").read_text()))):
        record["cost"].pop("seconds")
    assert repeated == records
    result = cli(
        "evaluate", folder, "metric=comet", *overrides(tiny, "metric", "regression_metric"), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with (folder / "curve.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    scores = [record["metrics"]["comet"] for record in lines((folder / "trajectories.jsonl").read_text())]
    assert float(row["comet"]) == pytest.approx(sum(scores) / 3) and row["comet_lo"]
    looked = cli("doctor", *run[1:], cwd=tmp_path)
    assert any(line.startswith("OK") and "reward: scored" in line for line in looked.stdout.splitlines()), (
        looked.stdout
    )
