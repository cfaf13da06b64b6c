"""What the cells of a sweep need where a launcher gives them to other machines."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp.errors import BadInput
from toa_exp.runners.placement import Share, check
from toa_exp.storage import is_url

_SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
_RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"


def check_launcher(config: DictConfig) -> None:
    """Raise BadInput where no cell of a sweep could run; `config` is a cell's, with Hydra's own.

    Connects to the Ray cluster where the launcher has the address of one.
    """
    launcher = config.hydra.launcher
    if launcher._target_ == _RAY:
        init: Any = OmegaConf.to_container(launcher.ray.init, resolve=True)
        if init.get("address"):
            from toa_exp.runners.connection import connect, nodes

            connect("hydra.launcher.ray.init.address", init)
            names, remote = ("num_gpus", "num_cpus", "resources"), launcher.ray.remote
            given = {name: remote[name] for name in names if remote.get(name) is not None}
            cell = Share.of({"num_cpus": 1, **given}, "hydra.launcher.ray.remote")
            check([node["Resources"] for node in nodes()], [("a cell (hydra.launcher.ray.remote)", cell)])
    check_store(config, launcher._target_)
    if launcher._target_ == _SLURM and shutil.which("srun") is None:
        raise BadInput(
            "hydra/launcher=slurm hands its jobs to Slurm, whose commands (srun, sbatch) are not on this "
            "machine's PATH; start the sweep where they are, or choose hydra/launcher=submitit_local"
        )


def check_store(config: DictConfig, launcher: str) -> None:
    """Raise BadInput where cells on several machines would share a file as their store.

    `launcher` is the import path of what starts them; Ray says itself how many machines it has.
    """
    path = OmegaConf.select(config, "store.path")
    if path is None or is_url(path):
        return
    if launcher == _SLURM:
        where = "Slurm's jobs are on several machines"
    elif launcher == _RAY and (number := _machines()) > 1:
        where = f"the Ray cluster has {number} machines"
    else:
        return
    raise BadInput(
        f"{where}, which cannot share the file {path}; choose store=postgresql "
        f"store.url=postgresql://user@host:5432/database, or hydra/launcher=submitit_local for this machine"
    )


def _machines() -> int:
    import ray

    from toa_exp.runners.connection import machines

    return machines() if ray.is_initialized() else 1


def enter_folder(folder: str) -> None:
    """Work in the folder where a run was started, which relative paths and modules of one's own are in.

    Raises BadInput where this machine lacks it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise BadInput(
            f"{os.uname().nodename} has no folder {folder} ({error.strerror}); start the run in a folder "
            f"that all machines of the cluster share"
        ) from error
    if folder not in sys.path:
        sys.path.append(folder)


def enter_early() -> None:
    """`enter_folder`, of $TOA_EXP_FOLDER, as Ray calls it in a new worker: before Hydra makes a folder there.

    Where it is missing the cell says so: Ray would go on starting workers for ever.
    """
    with contextlib.suppress(BadInput):
        enter_folder(os.environ["TOA_EXP_FOLDER"])
