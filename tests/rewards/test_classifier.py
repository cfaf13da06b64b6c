"""The classifier reward, on tiny random models."""

import asyncio
import weakref
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from tiny_models import CHARACTERS, VOCABULARY, causal_model, classifier_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from toa_exp.core import Problem
from toa_exp.draws import Score
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.patience import Patience
from toa_exp.rewards.classifier import Classifier

PROBLEM = Problem("p", "What is 12 + 30?")
TEXTS = ["".join(Random(i).choices(CHARACTERS, k=1 + 17 * i % 90)) for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_model(tmp_path_factory.mktemp("model"))


def score_all(
    folder: Path, texts: Sequence[str], problem: Problem = PROBLEM, **settings: object
) -> list[Score | BaseException]:
    """The scores, or errors, of texts that are all asked for at once."""

    async def run() -> list[Score | BaseException]:
        reward = Classifier(model=str(folder), **{"device": "cpu", **settings})
        try:
            return await asyncio.gather(
                *(reward.score(problem, text) for text in texts), return_exceptions=True
            )
        finally:
            await reward.close()

    return asyncio.run(run())


def rewards(scores: Sequence[Score | BaseException]) -> list[float]:
    for score in scores:
        if isinstance(score, BaseException):
            raise score
    return [score.reward for score in scores]


def plainly(folder: Path, texts: Sequence[str], label: int = 0) -> list[float]:
    """One text at a time, as the documentation of transformers does it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for text in texts:
        messages = [{"role": "user", "content": PROBLEM.prompt}, {"role": "assistant", "content": text}]
        chat = tokenizer.apply_chat_template(messages, return_tensors="pt")
        with torch.inference_mode():
            scores.append(float(model(**chat).logits[0, label]))
    return scores


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, None])
def test_scores_are_those_of_one_text_at_a_time(tmp_path, padding_side, pad):
    folder = classifier_model(tmp_path, padding_side=padding_side, pad_token_id=pad)
    expected = plainly(folder, TEXTS)
    assert max(expected) - min(expected) > 0.1
    for max_batch in (1, 3, 16):
        assert rewards(score_all(folder, TEXTS, max_batch=max_batch)) == pytest.approx(expected, abs=1e-5)
    order = Random(0).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = rewards(score_all(folder, [TEXTS[i] for i in order], max_batch=5))
    assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-5)


def test_texts_that_use_every_token_need_no_padding_token(tmp_path):
    folder = classifier_model(tmp_path, pad_token_id=None, max_position_embeddings=512)
    specials = "<pad><eos><unk><user><assistant><end>"
    texts = [CHARACTERS + specials, "a" + CHARACTERS]
    assert rewards(score_all(folder, texts)) == pytest.approx(plainly(folder, texts), abs=1e-5)


def test_tokens_are_those_that_were_read(folder):
    around = 6 + len(PROBLEM.prompt) - 2
    scores = score_all(folder, ["abc", "abcdefgh"])
    assert [score.tokens for score in scores] == [around + 3, around + 8]
    assert all(score.seconds > 0 for score in scores)


def test_a_label_picks_one_output_of_several(tmp_path):
    folder = classifier_model(tmp_path, labels=3)
    for label in (0, 2):
        expected = plainly(folder, TEXTS[:4], label)
        assert rewards(score_all(folder, TEXTS[:4], label=label)) == pytest.approx(expected, abs=1e-5)
    for label in (None, 3, -1):
        [error] = score_all(folder, ["abc"], label=label)
        assert isinstance(error, BadInput) and "reward.label=<0 to 2>" in str(error)


def test_a_text_over_the_window_fails_alone(folder):
    good, long = score_all(folder, ["abc", "x" * 300])
    assert isinstance(good, Score)
    assert isinstance(long, Permanent)
    assert "320 tokens" in str(long) and "at most 256" in str(long)
    short, long = score_all(folder, ["abc", "x" * 100], max_length=64)
    assert isinstance(short, Score)
    assert isinstance(long, Permanent) and "at most 64" in str(long)
    [error] = score_all(folder, ["abc"], max_length=300)
    assert isinstance(error, BadInput) and "window of 256" in str(error)


def test_a_model_that_cannot_be_used_is_told(tmp_path):
    with pytest.raises(BadInput, match="no folder"):
        Classifier(model=str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match=r"config\.json"):
        Classifier(model=str(tmp_path))
    [error] = score_all(causal_model(tmp_path / "language"), ["abc"])
    assert isinstance(error, BadInput) and "reward" in str(error)


def test_scores_that_are_not_numbers_end_in_an_error(tmp_path):
    folder = classifier_model(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data[:] = float("nan")
    model.save_pretrained(folder)
    [error] = score_all(folder, ["abc"])
    assert isinstance(error, Permanent) and "nan" in str(error)


def memory_for(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[weakref.ref]:
    """Memory for so many tokens of a batch; returns what the steps that had too little of it made."""
    forward, made = LlamaForSequenceClassification.forward, []

    def tight(model: object, **given: torch.Tensor) -> object:
        if given["input_ids"].numel() > tokens:
            activations = torch.zeros(1)
            made.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, **given)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", tight)
    return made


@pytest.mark.parametrize("tokens", [120, 250, 600])
def test_what_memory_is_too_small_for_is_read_in_halves(folder, tokens, monkeypatch, caplog):
    expected = rewards(score_all(folder, TEXTS))
    made = memory_for(monkeypatch, tokens)
    assert rewards(score_all(folder, TEXTS)) == pytest.approx(expected, abs=1e-5)
    assert made and caplog.text.count("a lower reward.max_batch") == 1


def test_a_text_that_memory_is_too_small_for_is_unavailable_alone(folder, monkeypatch):
    memory_for(monkeypatch, 60)
    good, long, other = score_all(folder, ["abc", "x" * 100, "abcd"])
    assert isinstance(good, Score) and isinstance(other, Score)
    assert isinstance(long, Unavailable) and not isinstance(long, Permanent)
    assert "one answer of 120 tokens alone" in str(long) and "reward.dtype=bfloat16" in str(long)


def test_nothing_of_a_step_that_ran_out_of_memory_is_kept_while_it_is_tried_again(folder, monkeypatch):
    made, kept = memory_for(monkeypatch, 10), []

    def retried() -> None:
        kept.append([each() is not None for each in made])

    async def run() -> None:
        reward = Classifier(model=str(folder), device="cpu")
        try:
            await Patience(1, 0.0, retried)(reward.score, PROBLEM, "abc")
        finally:
            await reward.close()

    with pytest.raises(Unavailable):
        asyncio.run(run())
    assert kept == [[False]]


def test_the_fingerprint_is_the_content_and_the_label(folder, tmp_path):
    fingerprint = Classifier(model=str(folder)).fingerprint()
    assert fingerprint["model"].startswith("folder:") and "label" not in fingerprint
    moved = classifier_model(tmp_path / "moved")
    other = classifier_model(tmp_path / "other", seed=1)
    assert Classifier(model=str(moved), max_length=64).fingerprint() == fingerprint
    assert Classifier(model=str(other)).fingerprint() != fingerprint
    assert Classifier(model=str(folder), label=0).fingerprint() != fingerprint
    assert Classifier(model=str(folder), dtype="float64").fingerprint() != fingerprint


def test_the_shape_has_no_output_head(folder):
    shape = Classifier(model=str(folder)).shape
    assert shape is not None
    assert shape.head == 0 and shape.embedding == VOCABULARY * 32
