"""Over-optimisation of stored runs: toa-exp overoptimisation <folder> gold=accuracy x=samples.

The selecting reward of the answers is drawn beside a gold measure as n grows, with the reward's
calibration: gold by quantile of the reward. gold is a metric of the task, or a held-out reward:
reward@held_out=<choice>. Nothing is generated; new scores of a held-out reward go to the store.
Methods whose shorter run is a prefix are read at powers of two, others at their budgets.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from toa_exp.app import launch, positional
from toa_exp.gold import Gold
from toa_exp.overoptimisation import table
from toa_exp.panels import overoptimisation
from toa_exp.results import find_runs


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_overoptimisation, "overoptimisation", positional(arguments, "folder"), "overoptimisation")


def _overoptimisation(config: DictConfig) -> None:
    folder = Path(config.folder)
    held_out = config.get("held_out")
    name = config.gold
    if held_out is not None:
        name = config.gold or str(HydraConfig.get().runtime.choices["reward@held_out"])
    elif name is None:
        name = next((m for m in find_runs(folder)[0].metrics if m != "best_reward"), None)
    gold = Gold(
        name,
        held_out,
        calibration=config.calibration,
        store=config.store.path,
        retries=config.retries,
        backoff=config.backoff,
    )
    out = None if config.out is None else Path(config.out)
    turns, files = overoptimisation(folder, gold, name or "none", x=config.x, bins=config.bins, out=out)
    print("\n".join([table(turns), *map(str, files)]))
