"""What to do about a model that is missing or damaged, or too large."""

from __future__ import annotations

from pathlib import Path

from toa_exp.labels import LAB_WEIGHTS

# The lab's models that a reward runs, and which.
_REWARDS = {"teacher": "lab_likelihood", "reward": "lab_process", "judge": "lab_judge", "weak": "lab_weak"}
_LAB = {"math", "translation", "instructions"}


def missing(model: str) -> str:
    """The mend for a path that is no folder."""
    task = Path(model).expanduser().parent
    if task.name not in _LAB:
        return "give a model folder or a hub id"
    there = {path.name for path in task.iterdir() if path.is_dir()} if task.is_dir() else set()
    if not there:
        return (
            f"ensemble.weights (of `toa-exp lab card`: weights) is a folder that `toa-exp lab train "
            f"task=lab_{task.name} to=<folder>` wrote, or null for the models of the package"
        )
    if task.name == "instructions":
        there.discard("judge")  # it decides the task's comparisons, and is no reward
    rewards = [f"reward={reward}" for name, reward in _REWARDS.items() if name in there]
    return (
        f"{task} has {', '.join(sorted(there))}. The lab's rewards for task=lab_{task.name} are "
        f"{', '.join(rewards) or 'not there'}; `toa-exp lab train` makes all models anew"
    )


def damaged(model: str) -> str:
    """The mend for a model that cannot be loaded as it is."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"download it again: hf download {model}"
    if folder.resolve().is_relative_to(LAB_WEIGHTS.resolve()):
        return "reinstall toa-exp (pip install --force-reinstall), or make the models anew: toa-exp lab train"
    mend = "copy the folder again, or download it again: hf download <hub id> --local-dir <folder>"
    if folder.absolute().parent.name in _LAB:
        mend = "copy the folder again, or make the models anew: toa-exp lab train"
    return mend


def room(whose: str) -> str:
    """The mend for a model that a device has too little memory for, by whose it is."""
    if whose == "reward":
        return "give reward.dtype=bfloat16 or another reward.device (cpu, cuda:1), or choose a smaller model"
    return (
        "give engine.residents=1, so that agents take turns, or choose engine=vllm, which quantises a model "
        "or spreads it over several GPUs"
    )
