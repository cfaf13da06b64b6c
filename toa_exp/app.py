"""Runs a command as a Hydra app over conf/, with errors that say what was allowed."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import hydra
from antlr4.error.Errors import RecognitionException
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from toa_exp import labels
from toa_exp.cli import CONF, unread
from toa_exp.ensemble import FIELDS as AGENT_FIELDS
from toa_exp.errors import BadInput, ToaError, Unread, choose, missing_extra
from toa_exp.redact import split_password
from toa_exp.runners.launchers import check_launcher, check_store, enter_folder

log = logging.getLogger(__name__)

_FLAGS_WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c",
                     "--package", "-p", "--info", "-i"}  # fmt: skip
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_RESOLVING = "BadInput raised while resolving interpolation: "
_OVERRIDE = re.compile(r"[+~]*\w+(\.\w+)*(@[\w.]+)?=")
_KEY = re.compile(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'")


def launch(task: Callable[[DictConfig], None], config: str, arguments: list[str], command: str) -> int:
    """Compose `config` with the overrides in `arguments` and call `task`, once for each job of -m.

    Returns the exit status. Raises BadInput, with what was allowed, for overrides that do not fit.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    labels.register()
    arguments = [_without_password(part) for argument in arguments for part in _split(argument)]
    overrides = _overrides(arguments)
    for override in overrides:
        if override.key_or_group == "experiment":
            _name_experiments(override, arguments)
    sys.argv = [f"toa-exp {command}", *_rewritten(arguments, overrides)]
    failed: list[int] = []
    folder = os.getcwd()
    enter_folder(folder)

    def job(cfg: DictConfig) -> None:
        try:
            try:
                enter_folder(folder)  # where it is on another machine
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    check_store(cfg, HydraConfig.get().launcher._target_)
                task(cfg)
            except OmegaConfBaseException as error:
                # an interpolation that the choices made leave without a value, or a refusal by our resolvers
                said = str(error).partition("\n")[0]
                raise BadInput(said.removeprefix(_RESOLVING)) from error
        except KeyboardInterrupt:
            _note("stopped")
            raise
        except Exception as error:  # said at once: the other jobs of a sweep still run
            if isinstance(error, BrokenPipeError) and unread():
                raise Unread from error  # Hydra says nothing of it, and there is nobody to say anything to
            failed.append(_report(error, command))
            if "BasicLauncher" not in HydraConfig.get().launcher._target_:
                raise  # it ran in another process, whose launcher must know

    try:
        if {"-m", "--multirun"} & set(arguments):
            first = _compose(config, overrides, _config_dirs(arguments), first_cell=True)
            if first is not None:
                check_launcher(first)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(job)()
    except MissingConfigException as error:
        _check_plugin(str(error.missing_cfg_file))
        if error.options is None:
            raise BadInput(str(error)) from error
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        unknown = choose(f"choice of {group}:", choice, list(error.options))
        raise BadInput(f"{unknown}. --config-dir <folder> adds YAMLs of your own") from error
    except ConfigCompositionException as error:
        raise BadInput(_allowed(error, config, overrides, _config_dirs(arguments))) from error
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        raise BadInput(str(error).strip()) from error
    return max(failed, default=0)


def _check_plugin(missing: str) -> None:
    """Raise BadInput where what is missing comes with a package that is not installed."""
    plugins = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "ray_aws": "ray"}
    group, _, choice = missing.rpartition("/")
    if group == "hydra/launcher" and choice in plugins:
        extra = plugins[choice]
        raise missing_extra({"slurm": "hydra-submitit-launcher", "ray": "hydra-ray-launcher"}[extra], extra)


def _report(error: Exception, command: str) -> int:
    """Say on standard error and in the log what ended a job; returns its exit status."""
    if isinstance(error, ToaError):
        _note(f"failed: {error}")
        print(f"toa-exp {command}: {error}", file=sys.stderr)
        return error.exit_status
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        _note(f"failed: {error}")
        print(
            f"toa-exp {command}: {error}. Check that the folder is yours to write to and the disk has space, "
            f"or give another folder; then run the same command again",
            file=sys.stderr,
        )
        return 1
    log.error("failed", exc_info=error)
    return 1


def _note(ended: str) -> None:
    """Write what ended a job to its log file alone, since the terminal is told in words of its own."""
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (ended,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _split(argument: str) -> list[str]:
    """A flag that has its value behind an equals sign, as two arguments."""
    flag, equals, value = argument.partition("=")
    return [flag, value] if equals and flag in _FLAGS_WITH_VALUE else [argument]


def _without_password(argument: str) -> str:
    """The argument without the password of the store's URL, which the environment holds from here on.

    What Hydra is given it logs, writes to files and sends to other machines.
    """
    if not argument.lstrip("+").startswith("store."):
        return argument
    bare, password = split_password(argument)
    if password is not None:
        os.environ["PGPASSWORD"] = password
    return bare


def positional(arguments: list[str], key: str) -> list[str]:
    """The arguments with the one that is no override and no flag as the value of `key`."""
    flags = _flags(arguments)
    result = [a if a in flags or _OVERRIDE.match(a) else f"{key}={_quoted(a)}" for a in arguments]
    if not any(argument.startswith(f"{key}=") for argument in result):
        raise BadInput(f"no {key} is given; see --help")
    return result


def check_out(out: str) -> None:
    """Raise BadInput where no file can be made at `out`, before what goes into it is worked out."""
    path = Path(out).absolute()
    if path.is_dir():
        raise BadInput(f"out={out} is a folder; give a file")
    if not path.parent.is_dir():
        raise BadInput(f"out={out}: there is no folder {path.parent}; make it first")


def _flags(arguments: list[str]) -> list[str]:
    """The arguments that are Hydra's flags, with their values."""
    before = ["", *arguments]
    return [a for a, b in zip(arguments, before, strict=False) if a.startswith("-") or b in _FLAGS_WITH_VALUE]


def _overrides(arguments: list[str]) -> list[Override]:
    """The arguments that are overrides, parsed."""
    flags = _flags(arguments)
    texts = [argument for argument in arguments if argument not in flags]
    return [_override(text) for text in texts]


def _override(text: str) -> Override:
    """One override; a value that Hydra's grammar does not take as it is, such as a path, is quoted."""
    parser = OverridesParser.create()
    key, equals, value = text.partition("=")
    try:
        return parser.parse_override(text)
    except (HydraException, RecognitionException) as error:
        if not equals or "'" in value or '"' in value:
            raise BadInput(
                f"{text!r} is no override: {error}\nOne reads group=choice or key=value; see --help"
            ) from error
    return parser.parse_override(f"{key}={_quoted(value)}")


def _quoted(value: str) -> str:
    """A value as a string of Hydra's grammar."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _name_experiments(override: Override, arguments: list[str]) -> None:
    """Let experiment=<any name> be a choice: where no YAML has the name it is a name and no more."""
    names = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    folders = [CONF, *_config_dirs(arguments)]
    for name in names:
        if not isinstance(name, str | int) or not re.fullmatch(r"[\w.+-]+", str(name)):
            raise BadInput(f"experiment={name}: a name has letters, digits and . _ + - only")
        if not any((folder / "experiment" / f"{name}.yaml").is_file() for folder in folders):
            ConfigStore.instance().store(group="experiment", name=str(name), node={})
            there = {path.stem for folder in folders for path in (folder / "experiment").glob("*.yaml")}
            if near := difflib.get_close_matches(str(name), sorted(there), n=1, cutoff=0.8):
                print(f"toa-exp: experiment={name} is a name of your own, not {near[0]!r}", file=sys.stderr)


def _config_dirs(arguments: list[str]) -> list[Path]:
    """The folders given by --config-dir."""
    return [Path(value).resolve() for flag, value in pairwise(arguments) if flag in ("--config-dir", "-cd")]


def _rewritten(arguments: list[str], overrides: list[Override]) -> list[str]:
    """The arguments as Hydra needs them.

    A mapping given for ensemble.agents replaces the agents (Hydra would merge the two), and the
    keys of a sweep that would share a run folder are named in sweep_keys.
    """
    result = []
    for override in overrides:
        text = str(override.input_line)
        if override.key_or_group == "ensemble.agents" and override.is_sweep_override():
            raise BadInput(
                "ensemble.agents cannot be swept; give each set of agents a YAML, and sweep ensemble"
            )
        replaces = text.startswith("ensemble.agents={")
        result += ["~ensemble.agents", f"+{text}"] if replaces else [text]
    swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
    further = [key for key in swept if not labels.in_folder_name(key)]
    if further:
        result.append(f"sweep_keys=[{','.join(further)}]")
    return [*result, *_flags(arguments)]  # argparse takes no flag between two overrides


def _allowed(
    error: ConfigCompositionException, config: str, overrides: list[Override], folders: list[Path]
) -> str:
    """The message for an override of a key that does not exist, with the keys that do."""
    text = str(error)
    if error.__cause__ is not None:
        text += f"\n{error.__cause__}"
    match = _KEY.search(text)
    if match is None:
        return text
    key = match[1].split("@")[0]
    others = [o for o in overrides if o.key_or_group != key and not o.is_sweep_override() and o.input_line]
    composed = _compose(config, others, folders)
    if composed is None:
        return text
    node, parents = composed, []
    *above, name = key.split(".")
    for part in above:
        if not isinstance(node, DictConfig) or part not in node:
            name = part
            break
        parents.append(part)
        node = node[part]
    if not isinstance(node, DictConfig):
        return text
    parent = ".".join(parents)
    of_agent = re.fullmatch(r"ensemble\.agents\.[^.]+", parent) and name in AGENT_FIELDS
    if of_agent or name in node or (not node and parent != "engines"):
        return f"{key} is not there so far; what is added has a plus before it: +{key}=<value>"
    what = f"field of {parent}:" if parent else "group or key"
    return str(choose(what, name, [str(k) for k in node if not str(k).startswith("_") or k == "_target_"]))


def _compose(
    config: str, overrides: list[Override], folders: list[Path], *, first_cell: bool = False
) -> DictConfig | None:
    """What Hydra would compose, for the `first_cell` of a sweep with its own part; None where it cannot."""
    GlobalHydra.instance().clear()
    try:
        lines = [line for override in overrides if (line := _first_of(override)) is not None]
        lines.append(f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]")
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config, lines, return_hydra_config=first_cell)
    except (HydraException, OmegaConfBaseException):
        return None


def _first_of(override: Override) -> str | None:
    """An override, of a sweep's the first; None where it cannot be told without Hydra's sweeper."""
    if not override.is_sweep_override():
        return override.input_line
    try:
        first = next(override.sweep_string_iterator(), None)
    except HydraException:  # glob, interval
        return None
    return None if first is None else f"{override.get_key_element()}={first}"
