"""Every choice of every group composes, and is what it names."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.build import build, build_function
from toa_exp.cli import group_choices
from toa_exp.core import Problem

CHOICES = [(group, choice) for group, choices in group_choices().items() for choice in choices]
FUNCTIONS = ("method", "selection")
BUILT = ("task", "reward", "engine", "runner", "metric")


def compose(*overrides, config="config"):
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config, list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group, choice):
    config = compose(f"{group}={choice}", config="evaluate" if group == "metric" else "config")
    if group == "experiment":
        return
    node = config[group]
    assert node
    if group in FUNCTIONS:
        build_function(node, group)
    elif group in BUILT:
        assert hydra.utils.get_object(node._target_)


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "task"])
def test_every_task_is_built(choice, tmp_path):
    config = compose(f"task={choice}")
    if "path" in list(config.task):
        config.task.path = str(tmp_path / "q.jsonl")
    if "pair" in list(config.task):
        config.task.pair = "de-en"
    task = build(config.task, "task")
    for template in ("direct", "refine", "aggregate"):
        drafts = {"direct": [], "refine": ["one"], "aggregate": ["one", "two"]}[template]
        messages = task.render(
            Problem("p", "Why?", meta={"source": "German", "target": "English"}), template, drafts
        )
        assert "Why?" in messages[-1]["content"]
        assert all(draft in messages[-1]["content"] for draft in drafts)


def test_an_ensemble_may_choose_engine_and_reward_and_the_command_line_wins():
    assert compose("ensemble=simulated").engine._target_.endswith("Simulator")
    config = compose("ensemble=simulated", "engine=replay", "reward=verifier")
    assert config.engine._target_.endswith("Replay") and config.reward._target_.endswith("Verifier")


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "experiment"])
def test_what_an_experiment_sets_is_set_and_the_command_line_wins(choice):
    said = OmegaConf.load(CONF / "experiment" / f"{choice}.yaml")
    own = {
        key: said[key]
        for key in said
        if key not in ("defaults", "hydra") and not OmegaConf.is_dict(said[key])
    }
    config = compose(f"experiment={choice}")
    assert {key: config[key] for key in own} == own
    assert compose(f"experiment={choice}", "concurrency=3").concurrency == 3


def test_the_folder_in_front_of_the_repository_is_the_one_that_ships():
    link = Path(__file__).parents[1] / "conf"
    if not link.exists():
        pytest.skip("not in a checkout")
    assert link.resolve() == CONF


def test_yaml_files_say_what_they_are():
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        assert text.startswith("#") or path.parent == CONF, path
        OmegaConf.create(text)
