"""The lab's models: toa-exp lab train|card task=lab_math.

train rebuilds agents and reward models of a task from a seed, stage by stage; rerun it to go on
after the last finished one. card prints what the models can do: the agents' skills afresh and in
refining, how well each reward model tells right answers from wrong ones, and its calibration.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from toa_exp.app import check_out, launch, positional
from toa_exp.errors import BadInput, choose
from toa_exp.labels import LAB_WEIGHTS


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_lab, "lab", positional(arguments, "action"), "lab")


def _lab(config: DictConfig) -> None:
    actions = {"train": _train, "card": _card}
    if config.action not in actions:
        raise choose("action", config.action, list(actions))
    if "domain" not in config.task:
        raise BadInput(
            "the lab has models for its own tasks: task=lab_math, lab_translation, lab_instructions"
        )
    import torch

    torch.set_num_threads(1)  # at this size more threads only wait for each other
    logging.getLogger("toa_exp.lab").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.INFO)
        handler.addFilter(_worth_showing)
    actions[config.action](config)


def _worth_showing(record: logging.LogRecord) -> bool:
    """Of what is below a warning only the lab's own progress."""
    return record.levelno >= logging.WARNING or record.name.startswith("toa_exp.lab.")


def _train(config: DictConfig) -> None:
    from toa_exp.engines.loading import check_placement, device_of
    from toa_exp.lab.plans import PLANS
    from toa_exp.lab.recipe import Recipe

    check_placement("lab", config.device, "float32")
    if config.to is None:
        raise BadInput("give to=<folder> for the models; runs use them with ensemble.weights=<folder>")
    if Path(config.to).is_file():
        raise BadInput(f"to={config.to} is a file; give a folder")
    domain = config.task.domain
    work = Path(config.work or Path(config.to) / "stages") / domain
    recipe = Recipe(PLANS[domain], work, config.seed, config.effort, device_of(config.device), config.dtype)
    recipe.build(Path(config.to) / domain)
    print(f"models in {Path(config.to) / domain}; use them with ensemble.weights={config.to}")


def _card(config: DictConfig) -> None:
    from toa_exp.lab.card import card, shown

    weights = LAB_WEIGHTS if config.weights is None else Path(config.weights)
    task = config.task
    if not isinstance(config.seed, int):
        raise BadInput(f"seed={config.seed}: give an integer")
    if config.out is not None:
        check_out(config.out)
    made = card(
        task.domain,
        weights / task.domain,
        task.parts,
        task.problems,
        config.seed,
        config.temperature,
        config.top_p,
    )
    if config.out is not None:
        Path(config.out).write_text(json.dumps(made, indent=1) + "\n")
    print(shown(made))
