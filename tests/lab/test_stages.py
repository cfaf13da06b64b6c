"""The work folder of a training: what it takes over, and what it refuses."""

from pathlib import Path

import pytest
import torch

from toa_exp.errors import BadInput
from toa_exp.lab.plans import PLANS
from toa_exp.lab.recipe import Recipe
from toa_exp.lab.stages import MANIFEST, Stages

MADE = {"task": "math", "seed": 0, "effort": 1.0, "parts": (2, 8)}


def filled(folder: Path) -> Stages:
    stages = Stages(folder, MADE)
    stages.keep("teacher", {"weight": torch.ones(3)})
    stages.keep_attempts("attempts", [("1+1", ["1+1=2 2", "?"])])
    return stages


def test_finished_stages_are_taken_over(tmp_path: Path) -> None:
    filled(tmp_path / "new" / "math")
    stages, taken = Stages(tmp_path / "new" / "math", MADE | {"effort": 1}), []
    assert stages.done() == ["attempts", "teacher"]
    assert stages.parameters("teacher", taken.append) and torch.equal(taken[0]["weight"], torch.ones(3))
    assert stages.attempts("attempts") == [("1+1", ["1+1=2 2", "?"])]
    assert not stages.parameters("judge", taken.append) and stages.attempts("judged") is None
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed=0, and this training has seed=7"),
        ({"effort": 0.5}, "effort=1.0, and this training has effort=0.5"),
        ({"task": "translation"}, "task=math, and this training has task=translation"),
        ({"device": "cuda"}, "device=None, and this training has device=cuda"),
    ],
)
def test_stages_of_another_training_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    filled(tmp_path)
    with pytest.raises(BadInput, match=message) as error:
        Stages(tmp_path, MADE | change)
    assert f"delete {tmp_path}" in str(error.value) and "to=<folder>" in str(error.value)


def test_stages_that_nothing_is_known_of_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        Stages(tmp_path, MADE)


@pytest.mark.parametrize("name", ["attempts.json", "teacher.safetensors", MANIFEST])
@pytest.mark.parametrize("content", [b"", b"\x93\x00[[", b"[1, 2]"])
def test_a_damaged_file_is_named_with_what_to_delete(name: str, content: bytes, tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name} is damaged .*delete"):
        stages = Stages(tmp_path, MADE)
        stages.attempts("attempts")
        stages.parameters("teacher", lambda state: None)


def test_a_stage_of_another_model_is_damaged(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(BadInput, match=r"teacher\.safetensors is damaged"):
        Stages(tmp_path, MADE).parameters("teacher", torch.nn.Linear(4, 4).load_state_dict)


@pytest.mark.parametrize("effort", [-1, 0, "x", float("nan"), float("inf")])
def test_an_effort_that_trains_nothing_is_refused(effort: float, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"effort={effort}"):
        Recipe(PLANS["math"], tmp_path / "stages", 0, effort=effort)
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize("seed", [-1, "x", 1 << 40])
def test_a_seed_that_is_none_is_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"seed={seed}"):
        Recipe(PLANS["math"], tmp_path / "stages", seed)


def test_a_recipe_does_not_go_on_from_another_seed(tmp_path: Path) -> None:
    Recipe(PLANS["math"], tmp_path, 0, effort=0.01)
    Recipe(PLANS["math"], tmp_path, 0, effort=0.01)
    with pytest.raises(BadInput, match="seed=0, and this training has seed=1"):
        Recipe(PLANS["math"], tmp_path, 1, effort=0.01)
