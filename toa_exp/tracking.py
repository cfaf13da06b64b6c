"""Weights & Biases: one run a job, with its config, curve, figures and trajectories."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from toa_exp.curves import Row
from toa_exp.errors import BadInput, ToaError, choose
from toa_exp.redact import without_secrets

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

MODES = ["auto", "online", "offline", "disabled"]

_ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_INIT_SECONDS = 30.0  # an unreachable server is found out at the start of a job
_UPLOAD_SECONDS = 600.0  # what is not uploaded by then stays on disk for `wandb sync`


class Tracker:
    """Tracks one job as a W&B run; a context manager around it, or `start` and `finish`.

    `settings` are `mode`, `project` and `entity`; `folder` is the run folder, and `config` the
    resolved config with its `run` labels. The run's id follows from the labels, so that a rerun of
    the command continues the same W&B run. Nothing that fails in W&B fails the job: it is a
    warning, and where the server cannot be reached the run is kept offline.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
        self._settings = settings
        self._folder = folder.resolve()
        self._config = without_secrets(config)
        self._run: wandb.Run | None = None

    def __enter__(self) -> Tracker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(0 if error is None else 1)

    @property
    def identity(self) -> str:
        """The id of the W&B run: a digest of its labels, its configuration and its seed."""
        labels = self._config["run"]
        parts = [labels[name] for name in ("experiment", "task", "ensemble", "method", "configuration")]
        return hashlib.sha256(json.dumps([*parts, self._config["seed"]]).encode()).hexdigest()[:16]

    def start(self) -> None:
        """Open the run; raises BadInput for a mode that is none, or online without an API key."""
        mode = _mode(self._settings["mode"])
        if mode == "disabled":
            return
        for attempt in dict.fromkeys([mode, "offline"]):
            try:
                self._run = self._init(attempt)
            except Exception as error:  # wandb's errors have no common root, and a run does not need it
                log.warning("W&B could not start %s: %s", attempt, _reason(error))
                _wandb().teardown()  # its service holds on to the id of the run that did not start
            else:
                break
        if self._run is None:
            log.warning("this job is not tracked in W&B; its results are complete in %s", self._folder)
        elif self._run.offline and mode == "online":
            log.warning("the W&B run is kept offline; upload it later with: %s", self._mend)

    def curve(self, rows: Sequence[Row]) -> None:
        """Log the rows of curve.csv as history over compute; the summary is the largest budget's."""
        self._try("the curve", lambda run: _log_curve(run, rows))

    def figures(self, draw: Callable[[], Sequence[Path]]) -> None:
        """Log drawings: the PNGs as images of the run, and all files as an artifact.

        `draw` makes them, and is called only where there is a run to log them to; raises what it raises.
        """
        if self._run is not None:
            paths = draw()
            self._try("the figures", lambda run: _log_figures(run, paths))

    def outputs(self) -> None:
        """Log trajectories.jsonl, curve.csv and the config without secrets as an artifact."""
        self._try("the trajectories", lambda run: _log_outputs(run, self._folder, self._config))

    def finish(self, status: int = 0) -> None:
        """Close the run; a `status` other than 0 marks it as failed."""
        run = self._run
        self._try("the end of the run", lambda run: run.finish(exit_code=status))
        self._run = None
        if run is not None and run.offline:
            log.info("W&B run kept offline; upload it with: wandb sync %s", Path(run.dir).parent)

    @property
    def _mend(self) -> str:
        return f"wandb sync {Path(self._run.dir).parent}" if self._run else ""

    def _try(self, what: str, action: Callable[[wandb.Run], None]) -> None:
        """Do it if there is a run; a failure of W&B becomes a warning that says how to mend it."""
        if self._run is None:
            return
        try:
            action(self._run)
        except ToaError:
            raise
        except Exception as error:  # as in `start`; what a run gave is in its folder by now
            log.warning("W&B could not take %s: %s; mend it with: %s", what, _reason(error), self._mend)

    def _init(self, mode: str) -> wandb.Run:
        labels = self._config["run"]
        names = [str(labels[name]) for name in ("task", "ensemble", "method")]
        run: wandb.Run = _wandb().init(
            mode=mode,
            project=self._settings["project"],
            entity=self._settings["entity"],
            dir=str(self._folder.parents[3]),
            id=self.identity,
            name="/".join([*names, f"seed={self._config['seed']}"]),
            group=str(labels["experiment"]),
            job_type=str(labels["method"]),
            tags=[name[:64] for name in dict.fromkeys(names)],  # W&B's limit
            config=self._config,
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
            settings=_quiet_and_discreet(),
        )
        return run


def _mode(wanted: str) -> str:
    """What `tracking.mode` comes to here: online, offline or disabled."""
    if wanted not in MODES:
        raise choose("tracking.mode", wanted, MODES)
    if wanted == "online" and not _has_key():
        raise BadInput(
            "tracking.mode=online needs a W&B API key, and none is configured. Run `wandb login`, set "
            "WANDB_API_KEY, or use tracking.mode=offline"
        )
    if wanted != "auto":
        return wanted
    told = os.environ.get("WANDB_MODE")
    if not told:
        return "online" if _has_key() else "offline"
    if told not in _ENVIRONMENT_MODES:
        raise choose("WANDB_MODE", told, list(_ENVIRONMENT_MODES))
    return _ENVIRONMENT_MODES[told]


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    wandb = _wandb()
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error:
        return True  # a key of a wrong form: opening the run says so


def _wandb() -> Any:
    """The wandb module, told to write nothing to the console."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def _quiet_and_discreet() -> Any:
    """Settings that keep code, git state, command line, host and console out of the run."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        label_disable=True,
        host="",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_UPLOAD_SECONDS,
        finish_timeout_raises=True,
    )


def _log_curve(run: wandb.Run, rows: Sequence[Row]) -> None:
    history = [_point(row) for row in rows]
    digest = hashlib.sha256(json.dumps(history, sort_keys=True).encode()).hexdigest()
    if run.resumed and dict(run.summary).get("curve_digest") == digest:
        return  # a rerun of a job that was done already
    run.define_metric("curve/flops")
    run.define_metric("curve/*", step_metric="curve/flops")
    for point in history:
        run.log(point)
    run.summary["curve_digest"] = digest


def _point(row: Row) -> dict[str, float]:
    """A row of curve.csv as W&B's keys, with prompt and completion tokens together besides."""
    point = {f"curve/{name}": value for name, value in row.items() if name != "method" and value is not None}
    if row.get("prompt_tokens") is not None:
        point["curve/tokens"] = row["prompt_tokens"] + row["completion_tokens"]
    return point


def _log_figures(run: wandb.Run, paths: Sequence[Path]) -> None:
    import wandb

    folder = _copies(run)
    artifact = wandb.Artifact(f"figures-{run.id}", type="figure")
    for path in paths:
        if path.suffix == ".png":
            run.log({f"figures/{path.stem}": wandb.Image(str(path))})
        artifact.add_file(shutil.copy2(str(path), str(folder)), policy="immutable")
    run.log_artifact(artifact)


def _log_outputs(run: wandb.Run, source: Path, config: Mapping[str, Any]) -> None:
    import wandb
    from omegaconf import OmegaConf

    folder = _copies(run)
    OmegaConf.save(OmegaConf.create(dict(config)), folder / "config.yaml")
    shutil.copy2(source / "curve.csv", folder)
    _link(source / "trajectories.jsonl", folder / "trajectories.jsonl")
    artifact = wandb.Artifact(f"trajectories-{run.id}", type="trajectories")
    for name in ("config.yaml", "curve.csv", "trajectories.jsonl"):
        artifact.add_file(str(folder / name), policy="immutable")
    run.log_artifact(artifact)


def _copies(run: wandb.Run) -> Path:
    """Where artifacts keep their files: beside the run, so that they are there for `wandb sync`."""
    folder = Path(run.dir).parent / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


def _link(source: Path, target: Path) -> None:
    """A second name for a file, which may be large; the runner replaces it and never writes into it."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
