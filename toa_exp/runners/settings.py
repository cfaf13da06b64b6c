"""What the machines of a cluster are told of a job: plain data, from which each builds its own objects."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp import __version__
from toa_exp.errors import BadInput
from toa_exp.job import Job
from toa_exp.runners.launchers import enter_folder
from toa_exp.storage import is_url

_PASSED_ON = re.compile(r"HF_TOKEN|PG[A-Z]+")  # everywhere as here: keys, and what libpq reads
# As here where a machine says nothing else: how others are reached; and what lies where, if it does.
_UNLESS_SET = re.compile(r"(?i:(https?|all|no)_proxy)|HF_ENDPOINT|HF_HUB_OFFLINE")
_PATHS = re.compile(r"SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|HF_HOME|HF_HUB_CACHE|TOA_EXP_COMET_PYTHON")


@dataclass(frozen=True)
class Settings:
    """A job as plain data.

    `folder` is where it was started, which relative paths are meant from. `environment` holds the
    keys and passwords that the configuration names or that reaching the store takes, `defaults` what
    holds where a machine says nothing else.
    """

    config: dict[str, Any]
    overrides: list[str]
    folder: str
    environment: dict[str, str]
    defaults: dict[str, str]
    version: str

    @classmethod
    def of(cls, job: Job) -> Settings:
        """Those of a job that was assembled here."""
        config: Any = OmegaConf.to_container(job.config, resolve=True)
        if not is_url(job.store):
            config["store"]["path"] = str(Path(job.store).absolute())
        named = _named(config)
        environment = {n: v for n, v in os.environ.items() if n in named or _PASSED_ON.fullmatch(n)}
        kinds = (_UNLESS_SET, _PATHS)
        defaults = {n: v for n, v in os.environ.items() if any(kind.fullmatch(n) for kind in kinds)}
        return cls(config, list(job.overrides), os.getcwd(), environment, defaults, __version__)

    def enter(self) -> DictConfig:
        """Make this process one of the job's; returns its configuration.

        Raises BadInput where this machine lacks the folder or has another version of the package.
        """
        if self.version != __version__:
            raise BadInput(
                f"{os.uname().nodename} has toa-exp {__version__}, the run was started with {self.version}; "
                f"install the same version on all machines of the cluster"
            )
        enter_folder(self.folder)
        os.environ.update(self.environment)
        given = {name.lower() for name in os.environ}
        for name, value in self.defaults.items():
            if name.lower() not in given and (Path(value).exists() or not _PATHS.fullmatch(name)):
                os.environ[name] = value
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        return OmegaConf.create(self.config)


def _named(config: Any) -> set[str]:
    """The environment variables that a configuration names as holding a key."""
    if isinstance(config, Mapping):
        own = {str(value) for name, value in config.items() if name == "key_env" and value}
        return own.union(*map(_named, config.values()))
    return set().union(*map(_named, config)) if isinstance(config, list) else set()
