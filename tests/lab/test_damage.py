"""Models of the lab that are missing, damaged or of another kind, and problems that there are not."""

import asyncio
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from toa_exp.errors import BadInput
from toa_exp.lab.card import card
from toa_exp.lab.domain import problems
from toa_exp.lab.sums import SUMS
from toa_exp.lab.task import DOMAINS, LabTask
from toa_exp.labels import LAB_WEIGHTS, lab_model
from toa_exp.rewards.process import Process

PLAIN = {"each_draft": "{draft}", "templates": {"direct": [{"role": "user", "content": "{prompt}"}]}}


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def scramble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 20)


def widen(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name].repeat(1, 2)}, folder / "model.safetensors", {"format": "pt"})


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


DAMAGES = [shutil.rmtree, truncate, scramble, widen, lose_the_config]


@pytest.mark.parametrize("name", ["ada", "judge", "teacher"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_card_of_damaged_models_names_them(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    shutil.copytree(LAB_WEIGHTS / "math", tmp_path / "math")
    damage(tmp_path / "math" / name)
    with pytest.raises(BadInput, match=f"math/{name}"):
        card("math", tmp_path / "math", parts=2, count=1, seed=0, temperature=0.85, top_p=1.0)


def test_a_card_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    shutil.copytree(LAB_WEIGHTS / "math", tmp_path / "math")
    lose_the_tokenizer(tmp_path / "math" / "ada")
    with pytest.raises(BadInput, match=r"tokenizer of .*math/ada"):
        card("math", tmp_path / "math", parts=2, count=1, seed=0, temperature=0.85, top_p=1.0)


@pytest.mark.parametrize(
    ("parts", "count", "message"), [(3, 0, "task.problems=0"), (1, 5, "2 to 8"), (9, 5, "task.parts=9")]
)
def test_a_card_of_problems_that_there_are_not_is_refused(parts: int, count: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        card("math", LAB_WEIGHTS / "math", parts=parts, count=count, seed=0, temperature=0.85, top_p=1.0)


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (-1.0, 1.0, "temperature=-1"),
        (1.0, 0.0, "top_p=0"),
        (1.0, 1.5, "top_p=1.5"),
        (1.0, float("nan"), "nan"),
    ],
)
def test_a_card_of_samples_that_cannot_be_drawn_is_refused(
    temperature: float, top_p: float, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        card("math", LAB_WEIGHTS / "math", 2, 1, seed=0, temperature=temperature, top_p=top_p)


def judged(judge: Path, baseline: Path) -> LabTask:
    reward = Process(model=str(judge), separator="[\n,]", unit="log_odds", dtype="float64")
    return LabTask(
        domain="instructions", parts=3, problems=1, seed=0, prompts=PLAIN, judge=reward,
        baseline=str(baseline),
    )  # fmt: skip


async def scored(task: LabTask) -> None:
    try:
        for problem in task.problems():
            await task.score(problem, "bear.")
    finally:
        await task.close()


def flip_a_bit(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(weights)


def test_a_flipped_bit_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    shutil.copytree(LAB_WEIGHTS / "math", tmp_path / "math")
    shutil.copyfile(LAB_WEIGHTS / SUMS, tmp_path / SUMS)
    assert lab_model(str(tmp_path), "math", "ben") == str(tmp_path / "math" / "ben")
    flip_a_bit(tmp_path / "math" / "ben")
    assert lab_model(str(tmp_path), "math", "ada") == str(tmp_path / "math" / "ada")
    with pytest.raises(BadInput, match=r"math/ben/model\.safetensors is damaged.*lab train"):
        lab_model(str(tmp_path), "math", "ben")
    with pytest.raises(BadInput, match=r"math/ben/model\.safetensors is damaged"):
        card("math", tmp_path / "math", parts=2, count=1, seed=0, temperature=0.85, top_p=1.0)
    (tmp_path / SUMS).unlink()  # models of one's own have none
    assert lab_model(str(tmp_path), "math", "ben") == str(tmp_path / "math" / "ben")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_baseline_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    shutil.copytree(LAB_WEIGHTS / "instructions", tmp_path / "here")
    damage(tmp_path / "here" / "dan")
    with pytest.raises(BadInput, match=r"task\.baseline.*here/dan"):
        asyncio.run(scored(judged(tmp_path / "here" / "judge", tmp_path / "here" / "dan")))


def test_a_damaged_judge_is_called_the_judge(tmp_path: Path) -> None:
    shutil.copytree(LAB_WEIGHTS / "instructions", tmp_path / "here")
    truncate(tmp_path / "here" / "judge")
    with pytest.raises(BadInput, match=r"task\.judge.*here/judge"):
        asyncio.run(scored(judged(tmp_path / "here" / "judge", tmp_path / "here" / "dan")))


def test_problems_that_are_used_up_are_told() -> None:
    stream = problems(DOMAINS["instructions"](), "here", 1, test=True)
    with pytest.raises(BadInput, match=r"only \d+ instructions problems of 1 parts.*task\.parts"):
        list(islice(stream, 1000))
    assert json.dumps(list(islice(problems(DOMAINS["instructions"](), "here", 2, test=True), 1000)))
