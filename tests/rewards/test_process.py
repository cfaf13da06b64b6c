"""The process and likelihood rewards, on tiny random models."""

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from tiny_models import CHARACTERS, causal_model, character_tokenizer, process_model
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from toa_exp.core import Problem
from toa_exp.errors import BadInput
from toa_exp.rewards.likelihood import Likelihood
from toa_exp.rewards.model import ModelReward
from toa_exp.rewards.process import Process
from toa_exp.rewards.steps import StepEncoder

PROBLEM = Problem("p", "What is 12 + 30?")
LETTERS = CHARACTERS.replace("\n", "")


def made_up(number: int) -> str:
    """A text of one to five lines."""
    rng = Random(number)
    return "\n".join("".join(rng.choices(LETTERS, k=rng.randint(1, 11))) for _ in range(1 + number % 5))


TEXTS = [made_up(number) for number in range(12)]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return process_model(tmp_path_factory.mktemp("process"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_model(tmp_path_factory.mktemp("causal"))


def score(reward: ModelReward, texts: Sequence[str]) -> list[float]:
    async def run() -> list[float]:
        try:
            found = await asyncio.gather(*(reward.score(PROBLEM, text) for text in texts))
            return [each.reward for each in found]
        finally:
            await reward.close()

    return asyncio.run(run())


def chat(folder: Path, text: str) -> tuple[torch.Tensor, int]:
    """Token ids of the whole chat and where the answer begins; a character is a token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": PROBLEM.prompt}]
    opening = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(opening + text + "<end>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    return ids, len(tokenizer(opening, add_special_tokens=False)["input_ids"])


def step_ends(text: str) -> list[int]:
    """The last characters of the steps of a text whose steps are its lines."""
    return [place for place, letter in enumerate(text) if letter == "\n" or place + 1 == len(text)]


def by_hand(folder: Path, text: str) -> list[float]:
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    ids, start = chat(folder, text)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0]
    right = logits[:, 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[:, 1]
    return [float(right[start + end]) for end in step_ends(text)]


def test_steps_end_with_the_separator_and_with_the_answer() -> None:
    encode = StepEncoder(character_tokenizer(), "\n")
    one = encode("ab", "cd\nefg")
    assert one.start == 5  # <user> a b <end> <assistant>
    assert [one.ids[end] for end in one.ends] == [*character_tokenizer()("\ng")["input_ids"]]
    assert one.ends == [one.start + 2, one.start + 5]
    assert encode("ab", "cd\n").ends == [one.start + 2]
    assert encode("ab", "").ends == []


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("aggregation", ["mean", "min", "product", "last"])
def test_process_reward_is_that_of_one_text_at_a_time(labels: int, aggregation: str, tmp_path: Path) -> None:
    folder = process_model(tmp_path, labels=labels)
    combine = {"mean": lambda s: sum(s) / len(s), "min": min, "product": math.prod, "last": lambda s: s[-1]}
    expected = [combine[aggregation](by_hand(folder, text)) for text in TEXTS]
    found = score(Process(model=str(folder), aggregation=aggregation, device="cpu", max_batch=5), TEXTS)
    assert found == pytest.approx(expected, abs=1e-5)


def test_log_odds_are_those_of_the_probability(process: Path) -> None:
    plain = score(Process(model=str(process), device="cpu"), TEXTS)
    odds = score(Process(model=str(process), device="cpu", unit="log_odds", scale=0.1), TEXTS)
    assert [1 / (1 + math.exp(-10 * value)) for value in odds] == pytest.approx(plain, abs=1e-5)


def test_an_empty_answer_is_not_right(process: Path, causal: Path) -> None:
    assert score(Process(model=str(process), device="cpu"), [""]) == [0.0]
    assert score(Likelihood(model=str(causal), device="cpu"), [""]) == [0.0]


def test_likelihood_is_the_models_own(causal: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(causal).eval()
    expected = []
    for text in TEXTS:
        ids, start = chat(causal, text)
        with torch.inference_mode():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        token = [float(logs[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])]
        bounds = [0, *(end + 1 for end in step_ends(text))]
        bounds[-1] = len(token)  # the closing token counts with the last step
        steps = [sum(token[a:b]) for a, b in pairwise(bounds)]
        expected.append(sum(1 / (1 + math.exp(-0.2 * (step + 30.0))) for step in steps) / len(steps))
    found = score(Likelihood(model=str(causal), slope=0.2, offset=30.0, device="cpu", max_batch=5), TEXTS)
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 0.05


def test_in_float64_a_score_does_not_depend_on_its_batch(process: Path) -> None:
    alone = score(Process(model=str(process), device="cpu", dtype="float64", max_batch=1), TEXTS)
    together = score(Process(model=str(process), device="cpu", dtype="float64", max_batch=12), TEXTS)
    assert alone == together


def test_a_template_that_changes_answers_is_refused(tmp_path: Path) -> None:
    folder = process_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content | upper")
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="changes answers"):
        score(Process(model=str(folder), device="cpu"), ["abc"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregation": "max"}, "last, mean, min, product"),
        ({"unit": "logit"}, "log_odds, probability"),
        ({"model": "/nowhere"}, "no folder"),
        ({"max_batch": 0}, "at least 1"),
        ({"scale": 0.0}, "above 0"),
    ],
)
def test_bad_settings_are_named(process: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Process(**{"model": str(process), **settings})


def test_a_separator_that_is_no_regular_expression_is_named(process: Path) -> None:
    with pytest.raises(BadInput, match="separator"):
        score(Process(model=str(process), separator="[", device="cpu"), ["abc"])


def test_models_of_other_kinds_are_refused(tmp_path: Path, causal: Path) -> None:
    with pytest.raises(BadInput, match="one output or two"):
        score(Process(model=str(process_model(tmp_path, labels=3)), device="cpu"), ["abc"])
    with pytest.raises(BadInput, match=r"weights .* are missing"):
        score(Process(model=str(causal), device="cpu"), ["abc"])


def test_fingerprints_tell_settings_apart(process: Path, causal: Path) -> None:
    variants = [
        Process(model=str(process)),
        Process(model=str(process), separator="x"),
        Process(model=str(process), aggregation="min"),
        Process(model=str(process), unit="log_odds"),
        Likelihood(model=str(causal)),
        Likelihood(model=str(causal), slope=2.0),
    ]
    seen = [str(variant.fingerprint()) for variant in variants]
    assert len(set(seen)) == len(seen)
