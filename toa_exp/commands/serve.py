"""Serve the models and the reward of a configuration: toa-exp serve <overrides of toa-exp run>.

Starts a vLLM server for each local model, or one small built-in server for all of them, and a reward
server; says how a run uses them; restarts what ends; and stops everything when it ends itself.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
from itertools import pairwise
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from toa_exp.app import launch
from toa_exp.build import plain
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import BadInput
from toa_exp.job import check_parts
from toa_exp.records import exclusive
from toa_exp.serving.plan import Place, Plan, plan
from toa_exp.serving.processes import Care, keep
from toa_exp.serving.served import served_ensemble, served_reward

_OWN = ("server", "host", "port", "folder", "startup", "restarts")
_REPLACED = ("ensemble", "engine", "engines", "reward")


def main(arguments: list[str]) -> int:
    """The command's exit status; 0 when it was told to stop."""
    if {"-m", "--multirun"} & set(arguments):
        raise BadInput("toa-exp serve serves one configuration; leave out -m, and give each key one value")
    folders = [value for flag, value in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    return launch(lambda config: _serve(config, folders), "serve", arguments, "serve")


def _serve(config: DictConfig, folders: list[str]) -> None:
    check_parts(config)
    agents = agents_of(plain(config.ensemble))
    if config.startup <= 0 or config.restarts < 0:
        raise BadInput(
            f"startup={config.startup} and restarts={config.restarts}: give seconds above 0, and 0 or more"
        )
    place = Place(str(config.host), config.port, Path(config.folder))
    logging.getLogger("toa_exp").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.INFO)
    place.folder.mkdir(parents=True, exist_ok=True)
    busy = f"another toa-exp serve has its files in {place.folder}; end it, or give folder=<another folder>"
    with exclusive(place.folder / "serve.lock", busy):
        made = plan(config, agents, place)
        _write(config, agents, made, place.folder)
        for server in made.servers:
            logging.getLogger(__name__).info("starting the %s; it writes to %s", server.name, server.log)
        care = Care(startup=float(config.startup), restarts=int(config.restarts))
        asyncio.run(_run(made, care, _how(made, place.folder, folders)))


async def _run(made: Plan, care: Care, how: str) -> None:
    """Keep the servers until a signal says to stop."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    keeping = asyncio.create_task(keep(made.servers, care, ready))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, keeping.cancel)
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([keeping, waiting], return_when=asyncio.FIRST_COMPLETED)
    if ready.is_set() and not keeping.done():
        print(how, flush=True)
    waiting.cancel()
    try:
        await keeping
    except asyncio.CancelledError:
        print("stopped all servers")


def _write(config: DictConfig, agents: dict[str, Agent], made: Plan, folder: Path) -> None:
    """The YAMLs with which a run finds the servers."""
    texts = {}
    if made.agents:
        texts["ensemble"] = served_ensemble(config, agents, made.agents, made.made)
    if made.reward is not None:
        choice = str(HydraConfig.get().runtime.choices["reward"])
        texts["reward"] = served_reward(config.reward, choice, made.reward)
    for group in ("ensemble", "reward"):
        path = folder / group / "served.yaml"
        path.unlink(missing_ok=True)  # of an earlier configuration
        if group in texts:
            path.parent.mkdir(exist_ok=True)
            path.write_text(texts[group], encoding="utf-8")


def _how(made: Plan, folder: Path, folders: list[str]) -> str:
    """Where everything is, and the command of a run on it."""
    lines = [f"agent {name}: {url}" for name, url in made.agents.items()]
    command = ["toa-exp", "run", "--config-dir", str(folder)]
    command += [f"hydra.searchpath=[file://{Path(other).resolve()}]" for other in folders]
    if made.agents:
        command.append("ensemble=served")
    if made.reward is not None:
        lines.append(f"reward: {made.reward}")
        command.append("reward=served")
    given = [str(override) for override in HydraConfig.get().overrides.task]
    command += [override for override in given if not _is_replaced(override, made)]
    return "\n".join([*lines, "", "Run on them with", f"  {shlex.join(command)}", "Ctrl-C stops them all."])


def _is_replaced(override: str, made: Plan) -> bool:
    """Whether an override of this command has no place in that of a run on its servers."""
    key = override.lstrip("+~").partition("=")[0]
    group = key.partition(".")[0].partition("@")[0]
    if group == "reward":
        return made.reward is not None
    return key in _OWN or (group in _REPLACED and bool(made.agents))
