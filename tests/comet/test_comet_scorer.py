"""Environment, checkpoints, batches over devices, metric and reward, without COMET itself."""

import asyncio
import json
import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from helpers import cli
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from omegaconf import OmegaConf

import toa_exp.comet.checkpoint as checkpoints
import toa_exp.comet.environment as environment
import toa_exp.comet.scorer as scorers
from toa_exp.build import build
from toa_exp.comet.checkpoint import Checkpoint
from toa_exp.comet.scorer import Scorer, Settings
from toa_exp.core import Problem
from toa_exp.cost import architecture
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.metrics.comet import Comet as Metric
from toa_exp.rewards.comet import Comet as Reward
from toa_exp.scoring.measure import Output
from toa_exp.serving.served import served_reward

FAKE = Path(__file__).with_name("fake_worker.py")
LARGE = {"model_type": "xlm-roberta", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096, "vocab_size": 250002}  # fmt: skip
XL = {**LARGE, "model_type": "xlm-roberta-xl", "hidden_size": 2560, "num_hidden_layers": 36,
      "num_attention_heads": 32, "intermediate_size": 10240, "vocab_size": 250880}  # fmt: skip


def folder(place, kind="regression_metric", **hparams):
    """A checkpoint that is none, in COMET's layout."""
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    (place / "hparams.yaml").write_text(
        yaml.safe_dump({"class_identifier": kind, "pretrained_model": "xlm-roberta-large", **hparams})
    )
    (place / "checkpoints" / "model.ckpt").write_bytes(b"weights")
    encoder = place / "encoder"
    encoder.mkdir(exist_ok=True)
    (encoder / "config.json").write_text(json.dumps(LARGE))
    return {"model": str(place), "encoder": str(encoder)}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The fake worker in place of COMET's, on a machine with two GPUs; its file of batches."""
    log = tmp_path / "batches.jsonl"

    def recipe(self, spec):
        made = real(self, {**spec, "log": str(log)})
        return replace(made, script=FAKE)

    real = Scorer._recipe
    monkeypatch.setattr(Scorer, "_recipe", recipe)
    monkeypatch.setattr(scorers, "version_of", lambda python, whose: "2.2.7")
    monkeypatch.setattr(scorers, "gpus_of", lambda python: 2)
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    return log


def batches(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def outputs(*texts, references=("ref",)):
    return [Output(str(n), "src", text, references) for n, text in enumerate(texts)]


def scores(metric, given):
    async def run():
        try:
            return await metric.scores(given)
        finally:
            await metric.close()

    return asyncio.run(run())


def reward_of(reward, *given):
    async def run():
        try:
            return await asyncio.gather(*(reward.score(*one) for one in given))
        finally:
            await reward.close()

    return asyncio.run(run())


def test_where_the_environment_is(monkeypatch, tmp_path):
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"make comet-env.*reward\.python=.*TOA_EXP_COMET_PYTHON"):
        environment.python_of(None, "reward")
    found = tmp_path / ".venv-comet" / "bin" / "python"
    found.parent.mkdir(parents=True)
    found.symlink_to(sys.executable)
    assert environment.python_of(None, "reward") == found
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(BadInput, match="elsewhere"):
        environment.python_of(None, "reward")
    assert environment.python_of(str(found), "reward") == found


def test_an_environment_without_comet_is_told(tmp_path):
    empty = tmp_path / "python"
    empty.symlink_to(sys.executable)
    with pytest.raises(BadInput, match=r"has no unbabel-comet.*make comet-env"):
        environment.version_of(empty, "metric")


@pytest.mark.parametrize(
    ("kind", "hparams", "takes", "needs"),
    [
        ("regression_metric", {}, True, True),
        ("referenceless_regression_metric", {}, False, False),
        ("unified_metric", {"input_segments": ["mt", "src"]}, False, False),
        ("unified_metric", {"input_segments": ["mt", "src", "ref"]}, True, False),
        ("unified_metric", {"input_segments": ["mt", "ref"]}, True, True),
        ("xcomet_metric", {}, True, False),
    ],
)
def test_what_a_model_reads_is_known_before_it_is_loaded(tmp_path, kind, hparams, takes, needs):
    found = Checkpoint(**folder(tmp_path, kind, **hparams), revision=None, whose="metric")
    assert (found.takes_reference, found.needs_reference) == (takes, needs)
    file = Checkpoint(str(tmp_path / "checkpoints" / "model.ckpt"), None, None, "metric")
    assert file.weights() == found.weights() == tmp_path / "checkpoints" / "model.ckpt"


def test_a_checkpoint_counts_by_its_content(tmp_path):
    one = Checkpoint(**folder(tmp_path / "a"), revision=None, whose="metric").fingerprint()
    assert one == Checkpoint(**folder(tmp_path / "b"), revision=None, whose="metric").fingerprint()
    given = folder(tmp_path / "b", layer_transformation="softmax")
    assert one != Checkpoint(**given, revision=None, whose="metric").fingerprint()
    given = folder(tmp_path / "b")
    (tmp_path / "b" / "checkpoints" / "model.ckpt").write_bytes(b"others")
    assert one != Checkpoint(**given, revision=None, whose="metric").fingerprint()


def test_checkpoints_that_are_not_there_or_not_known(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        Checkpoint(str(tmp_path / "none"), None, None, "metric")
    given = folder(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "model.ckpt").unlink()
    with pytest.raises(BadInput, match=r"there is no .*model\.ckpt"):
        Checkpoint(given["model"], None, None, "metric")
    with pytest.raises(BadInput, match=r"ranking_metric.*Allowed: .*xcomet_metric"):
        Checkpoint(folder(tmp_path / "b", "ranking_metric")["model"], None, None, "metric")
    (tmp_path / "b" / "hparams.yaml").write_text("!!python/object/apply:os.system [false]")
    with pytest.raises(BadInput, match="cannot be read as YAML"):
        Checkpoint(str(tmp_path / "b"), None, None, "metric")


def test_a_model_that_the_hub_does_not_give(monkeypatch, tmp_path):
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))

    def gated(repository, name, revision):
        raise GatedRepoError("gated", response=response)

    def unreachable(*given):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(checkpoints, "_file", gated)
    with pytest.raises(BadInput, match=r"is gated.*huggingface\.co/Unbabel/wmt22-cometkiwi-da.*HF_TOKEN"):
        Checkpoint("Unbabel/wmt22-cometkiwi-da", "1ad7851", None, "reward")
    monkeypatch.setattr(checkpoints, "_file", unreachable)
    monkeypatch.setattr(checkpoints, "_snapshot", unreachable)
    with pytest.raises(BadInput, match=r"revision 1ad7851.*reward\.model=<folder with hparams\.yaml"):
        Checkpoint("Unbabel/wmt22-cometkiwi-da", "1ad7851", None, "reward")
    local = Checkpoint(folder(tmp_path)["model"], None, None, "reward")
    for ask in (local.config, local.encoder):
        with pytest.raises(BadInput, match=r"'xlm-roberta-large'.*reward\.encoder=<folder with config\.json"):
            ask()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"devices": "gpu"}, "Allowed: auto, cpu"),
        ({"devices": []}, r"\[0,1\]"),
        ({"devices": [-1]}, r"\[0,1\]"),
        ({"dtype": "float16"}, "Allowed: float32, float64"),
        ({"max_batch": 0}, "max_batch"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_settings_that_no_model_can_be_run_with(wrong, said):
    with pytest.raises(BadInput, match=said):
        Settings(model="x", **wrong).check("reward")


def test_scores_are_in_order_whatever_the_batches_and_devices(fake, tmp_path):
    given = outputs(*("a" * (n * 7 % 23) for n in range(23)))
    expected = [len(one.text) / 100 for one in given]
    seen = []
    for devices, size in (("cpu", 1), ("cpu", 5), ([0], 5), ("auto", 5)):
        fake.unlink(missing_ok=True)
        metric = Metric(name="comet", **folder(tmp_path), devices=devices, max_batch=size)
        assert scores(metric, given) == expected
        seen.append(batches(fake))
    assert {device for device, _ in seen[3]} == {"cuda:0", "cuda:1"}
    # The same batches, of like length, on one device and on two.
    alone, one, two = (sorted(texts for _, texts in each) for each in seen[1:])
    assert alone == one == two
    assert max(len(texts[-1]) - len(texts[0]) for texts in one) <= 5


def test_equal_translations_are_scored_once(fake, tmp_path):
    metric = Metric(name="comet", **folder(tmp_path), devices="cpu")
    assert scores(metric, outputs("ab", "abc", "ab")) == [0.02, 0.03, 0.02]
    assert batches(fake) == [["cpu", ["ab", "abc"]]]


def test_gpus_that_are_not_there(fake, tmp_path):
    metric = Metric(name="comet", **folder(tmp_path), devices=[0, 2])
    with pytest.raises(BadInput, match=r"names \[2\].*sees 2 GPUs"):
        scores(metric, outputs("a"))


def test_a_fault_ends_a_metric(fake, tmp_path):
    for text, error in (("die", Unavailable), ("garbage", Unavailable), ("nan", Permanent)):
        metric = Metric(name="comet", **folder(tmp_path), devices="cpu", max_batch=2)
        with pytest.raises(error):
            scores(metric, outputs("a", text, "aaa", "aaaaaa"))


def test_which_reference_is_read(fake, tmp_path):
    given = folder(tmp_path)
    with pytest.raises(BadInput, match="'0' has none"):
        scores(Metric(name="comet", **given), outputs("a", references=()))
    with pytest.raises(BadInput, match="'0' has none"):
        scores(Metric(name="comet", **given), outputs("a", references=("",)))
    with pytest.raises(BadInput, match=r"2 references.*metric\.reference=<0 to 1>"):
        scores(Metric(name="comet", **given), outputs("a", references=("r", "s")))
    with pytest.raises(BadInput, match="has 1 references"):
        scores(Metric(name="comet", reference=1, **given), outputs("a"))
    assert scores(Metric(name="comet", reference=1, **given), outputs("a", references=("r", "s"))) == [0.01]
    kiwi = folder(tmp_path, "unified_metric", input_segments=["mt", "src"])
    assert scores(Metric(name="cometkiwi", **kiwi), outputs("a", references=())) == [0.01]
    both = folder(tmp_path, "xcomet_metric")
    mixed = [*outputs("a", references=()), *outputs("b")]
    with pytest.raises(BadInput, match="all or none"):
        scores(Metric(name="xcomet", **both), mixed)


def test_the_measure_says_how_it_was_made(fake, tmp_path):
    metric = Metric(name="comet", **folder(tmp_path), devices="cpu")

    async def run():
        try:
            return await metric.measured(outputs("a", "", "aaaaa"), failed=1)
        finally:
            await metric.close()

    measure, each = asyncio.run(run())
    assert each == [0.01, 0.0, 0.05]
    record = measure.record()
    assert record["value"] == pytest.approx(0.02) and record["n"] == 3 and record["failed"] == 1
    assert record["interval"][0] <= 0.02 <= record["interval"][1]
    for part in ("comet|model:folder:", "|unbabel-comet:2.2.7|", "|nrefs:1|", "failed:scored_as_empty"):
        assert part in record["signature"]


def test_a_reward_scores_what_many_problems_ask_at_once(fake, tmp_path):
    reward = Reward(**folder(tmp_path, "unified_metric", input_segments=["mt", "src"]), devices="cpu",
                    max_batch=8, range=[0.0, 1.0], dtype="float64")  # fmt: skip
    assert (reward.range.low, reward.range.high) == (0.0, 1.0)
    given = [(Problem(str(n), "source", "reference"), "a" * n) for n in range(20)]
    found = reward_of(reward, *given)
    assert [score.reward for score in found] == [n / 100 for n in range(20)]
    assert [score.tokens for score in found] == [len("source") + n for n in range(20)]  # no reference is read
    assert len(batches(fake)) < 20 and all(len(texts) <= 8 for _, texts in batches(fake))


def test_a_reward_is_known_by_its_model(fake, tmp_path):
    given = folder(tmp_path, "unified_metric", input_segments=["mt", "src"])
    one = Reward(**given, dtype="float64").fingerprint()
    assert one == Reward(**given, dtype="float64", max_batch=3, devices="cpu").fingerprint()
    assert one != Reward(**given, dtype="float32").fingerprint()
    assert one["unbabel-comet"] == "2.2.7" and one["model"].startswith("folder:")


def test_a_reward_that_needs_a_reference_reads_the_problems(fake, tmp_path):
    reward = Reward(**folder(tmp_path), devices="cpu")
    (score,) = reward_of(reward, (Problem("p", "src", ["one", "other"]), "text"))
    assert score.tokens == len("src") + len("text") + len("one")
    reward = Reward(**folder(tmp_path), devices="cpu")
    with pytest.raises(BadInput, match=r"problem 'p' has none.*reward=cometkiwi"):
        reward_of(reward, (Problem("p", "src"), "text"))


def test_a_score_that_is_no_number_is_permanent_and_a_fault_is_tried_again(fake, tmp_path):
    given = folder(tmp_path, "unified_metric", input_segments=["mt", "src"])
    with pytest.raises(Permanent, match="gave nan"):
        reward_of(Reward(**given, devices="cpu"), (Problem("p", "src"), "nan"))
    with pytest.raises(Unavailable, match="killed by signal 9"):
        reward_of(Reward(**given, devices="cpu"), (Problem("p", "src"), "die"))


def test_flops_are_those_of_the_encoder(fake, tmp_path):
    reward = Reward(**folder(tmp_path, "unified_metric", input_segments=["mt", "src"]))
    # 24 x (4 x 1024^2 + 2 x 1024 x 4096) parameters, two FLOPs each; attention over both texts together.
    assert reward.shape.flops(100, 0) == 2 * 301_989_888 * 100 + 4 * 24 * 1024 * 100**2
    xl = architecture(XL, output_head=False)
    assert xl.matrices == 36 * (4 * 2560**2 + 2 * 2560 * 10240) and not xl.causal
    given = folder(tmp_path, "unified_metric", input_segments=["mt", "src"])
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(BadInput, match="FLOPs"):
        Reward(**given)


def test_a_reward_is_placed_with_the_agents(fake, tmp_path):
    class Ground:
        wanted, loads = None, []

        def add(self, models):
            self.wanted = models

        def plan(self):
            (model,) = self.wanted()
            assert (model.name, model.weights) == ("reward", 8 * reward.shape.active)
            return SimpleNamespace(seats={"reward": SimpleNamespace(gpus=(1,))})

        @contextmanager
        def loading(self, gpus):
            self.loads.append(tuple(gpus))
            yield

    given = folder(tmp_path, "unified_metric", input_segments=["mt", "src"])
    reward, ground = Reward(**given, dtype="float64", max_batch=1), Ground()
    reward.join(ground)
    reward_of(reward, *((Problem(str(n), "src"), "a" * n) for n in range(4)))
    assert {device for device, _ in batches(fake)} == {"cuda:1"}
    assert ground.loads == [(1,)]
    named, ground = Reward(**given, devices=[0]), Ground()
    named.join(ground)
    assert ground.wanted is None


def test_a_served_reward_says_what_its_flops_are_counted_from(fake, tmp_path):
    given = folder(tmp_path, "unified_metric", input_segments=["mt", "src"])
    node = OmegaConf.create({"_target_": "toa_exp.rewards.comet.Comet", **given})
    served = OmegaConf.create(served_reward(node, "cometkiwi", "http://localhost:1"))
    assert build(served, "reward").shape == Reward(**given).shape


def test_a_sentence_over_the_window_is_said(fake, tmp_path, caplog):
    metric = Metric(name="comet", **folder(tmp_path), devices="cpu")
    assert scores(metric, outputs("a" * 60, "a" * 70)) == [0.6, 0.7]
    assert caplog.text.count("fills COMET's window") == 1


def test_lone_surrogates_and_space_are_cleaned(fake, tmp_path):
    metric = Metric(name="comet", **folder(tmp_path), devices="cpu")
    assert scores(metric, outputs(" a\ud800b \n")) == [0.03]
    assert batches(fake) == [["cpu", ["a?b"]]]


def test_the_commands_say_what_is_missing(tmp_path, questions):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"id": f"q{n}", "output": "x"}) + "\n" for n in range(12)))
    score = ["score", "task=jsonl", f"task.path={questions}", f"outputs={answers}"]
    result = cli(*score, "metric=comet", "metric.python=/nowhere/python", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "") and "make comet-env" in result.stderr
    result = cli(*score, "metric=coverage", cwd=tmp_path)
    assert result.returncode == 2 and "toa-exp evaluate" in result.stderr
    plain = json.loads(cli(*score, cwd=tmp_path).stdout)
    assert json.loads(cli(*score, "metric=task", cwd=tmp_path).stdout) == plain
    assert math.isfinite(plain["accuracy"]["value"])
