"""What a run is called: experiment/task/ensemble/method/seed, the parts of its folder.

A name is the choice of its group. Overrides that make it something else are part of it: parameters
of the method (`toa,alpha=0.1`), a task's language pair (`wmt22.de-en`), agents given in place of the
ensemble's (`tiny+small`), and the further keys of a sweep (`toa,selection=last`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp.errors import BadInput
from toa_exp.lab.sums import check_sums

LAB_WEIGHTS = Path(__file__).parent / "lab" / "weights"
PARTS = ["experiment", "task", "ensemble", "method", "seed"]
_OVERRIDE = re.compile(r"^[+~]*([\w./@-]+)=?(.*)$", re.S)
_UNSAFE = re.compile(r"[^\w.+=,\[\]-]+")


def register() -> None:
    """Make the folder of a run available as ${run_folder:}, that of a lab model as ${lab_model:...}."""
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("lab_model", lab_model, replace=True)


def lab_model(weights: str | None, domain: str | None, name: str) -> str:
    """The folder of one of the lab's models; `weights` None stands for those of the package.

    Raises BadInput for a task that they do not answer, and for files that are not those that were measured.
    """
    if domain is None:
        raise BadInput(
            f"the lab's model {name!r} answers the lab's own tasks alone; choose task=lab_math, "
            f"task=lab_translation or task=lab_instructions, or another ensemble and reward"
        )
    root = LAB_WEIGHTS if weights is None else Path(weights).expanduser()
    check_sums(root / domain / name)
    folder = str(root / domain / name)
    return folder if root.is_absolute() else f"./{folder}"  # which cannot be taken for a hub id


def in_folder_name(key: str) -> bool:
    """Whether the values of a key already tell run folders apart."""
    return key in PARTS or key == "task.pair" or key.startswith("method.")


def labels(config: DictConfig, hydra: Any) -> dict[str, str]:
    """The names of a run by part; `hydra` is the node of Hydra's own configuration."""
    choices = hydra.runtime.choices
    given = _given(hydra.overrides.task)
    method = str(choices.method)
    if "method._target_" in given:
        method = given["method._target_"].rpartition(".")[2]
    swept = {*config.sweep_keys, *(key for key in hydra.sweeper.params or {} if not in_folder_name(key))}
    marks = {
        key.removeprefix("method."): value
        for key, value in given.items()
        if (key.startswith("method.") and not key.startswith("method._")) or key in swept
    }
    replaced = "ensemble.agents" in given
    names = {
        "experiment": str(choices.experiment),
        "task": _task(config, str(choices.task)),
        "ensemble": "+".join(config.ensemble.agents) if replaced else str(choices.ensemble),
        "method": ",".join([method, *(f"{key}={value}" for key, value in marks.items())]),
        "seed": f"seed={config.seed}",
    }
    return {part: _UNSAFE.sub("_", name) for part, name in names.items()}


def _task(config: DictConfig, choice: str) -> str:
    """The choice, with the language pair where the task has one: wmt22.de-en."""
    pair = None if OmegaConf.is_missing(config.task, "pair") else config.task.get("pair")
    return f"{choice}.{pair}" if pair else choice


def _given(overrides: list[str]) -> Mapping[str, str]:
    matches = [_OVERRIDE.match(override) for override in overrides]
    return {match[1]: match[2] for match in matches if match is not None}


def _run_folder(form: str = "", *, _root_: Any) -> str:
    """The run folder: whole, or below `results` (`${run_folder:sweep}`)."""
    names = labels(_root_, _root_.hydra)
    parts = [names[part] for part in PARTS]
    return "/".join(parts if form == "sweep" else [str(_root_.results), *parts])
