"""Add a metric to stored runs: toa-exp evaluate <run folder> metric=<metric>.

Nothing is generated: the answers come from the store. selection=<choice> chooses the answers anew, and
reward=<choice> scores every sample anew and chooses by that: such results go into a folder of their
own beside the run's, <method>,selection=<choice>, so that figures and comparisons show both.
metric=task measures what the run's task does (so do metric=accuracy, bleu and chrf), metric=coverage
whether any sample is right; metric=comet, cometkiwi or xcomet judges translations; metric=alpaca_eval asks
a judge (metric.judge.model=, metric.judge.base_url=), and so does metric=arena_hard (metric.agent.model=,
metric.engine.base_url=).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from toa_exp.app import launch, positional
from toa_exp.errors import BadInput
from toa_exp.evaluation import CHOICES, derived, evaluate
from toa_exp.results import find_runs

_OF_THE_TASK = {
    f"metric={name}": ["metric=task", f"metric.name={name}"] for name in ("accuracy", "bleu", "chrf")
}


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    named = [part for argument in arguments for part in _OF_THE_TASK.get(argument, [argument])]
    return launch(_evaluate, "evaluate", positional(named, "folder"), "evaluate")


def _evaluate(config: DictConfig) -> None:
    choices = {str(k): v for k, v in HydraConfig.get().runtime.choices.items() if v is not None}
    runs = find_runs(Path(config.folder))
    if any(group in choices for group in CHOICES):
        runs = [run for run in runs if not derived(run.folder)]
        if not runs:
            raise BadInput(
                f"the runs below {config.folder} were themselves made by `toa-exp evaluate`; give the folder "
                f"of those that they were made of"
            )
    for run in runs:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print on it
            text = asyncio.run(evaluate(run.folder, config, choices))
        print(text)
