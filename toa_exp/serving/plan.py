"""What is to be served: the servers that a configuration needs, and how runs then find them."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp.build import build
from toa_exp.draws import canonical, digest
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose, missing_extra
from toa_exp.job import engine_node
from toa_exp.rewards.base import Reward
from toa_exp.serving import vllm
from toa_exp.serving.processes import Server, ports
from toa_exp.serving.scores import Withheld

SERVERS = ["auto", "transformers", "vllm"]
_OPENAI = "toa_exp.engines.openai.OpenAI"
_TRANSFORMERS = "toa_exp.engines.transformers.Transformers"
_VLLM = "toa_exp.engines.vllm.Vllm"
_HTTP = "toa_exp.rewards.http.HTTP"
_IN_RUN = ["toa_exp.rewards.verifier.Verifier", "toa_exp.rewards.simulator.SimulatedReward", _HTTP]


@dataclass(frozen=True, slots=True)
class Place:
    """Where servers listen and what they leave behind: `folder` has their logs."""

    host: str
    port: int | None
    folder: Path

    def url(self, port: int) -> str:
        """The URL under which a port is reached."""
        everywhere = self.host in ("0.0.0.0", "::")
        return f"http://{socket.getfqdn() if everywhere else self.host}:{port}"


@dataclass(slots=True)
class _Group:
    """Agents that one server has: what it is, and their names."""

    kind: str
    engine: DictConfig
    agents: dict[str, Agent] = field(default_factory=dict)

    @property
    def first(self) -> Agent:
        return next(iter(self.agents.values()))

    @property
    def name(self) -> str:
        return f"{self.kind} server of {', '.join(self.agents)}"

    def takes(self, kind: str, engine: DictConfig, agent: Agent) -> bool:
        """Whether another agent may join: a vLLM server has one model, the built-in one any number."""
        if (self.kind, self.engine) != (kind, engine):
            return False
        return all(
            (other.revision, other.options) == (agent.revision, agent.options)
            if other.model == agent.model
            else kind == "transformers"
            for other in self.agents.values()
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Servers, and the URLs at which agents and reward will be."""

    servers: Sequence[Server]
    agents: Mapping[str, str]
    reward: str | None


def plan(config: DictConfig, agents: Mapping[str, Agent], place: Place) -> Plan:
    """The servers that a configuration needs.

    Simulated agents, those that an endpoint already has, and rewards that read more than prompt and
    response need none. Raises BadInput where nothing is left, or vLLM is wanted and not installed.
    """
    if config.server not in SERVERS:
        raise choose("server", config.server, SERVERS)
    groups = _groups(config, agents)
    scored = config.reward.get("_target_") not in _IN_RUN
    if not groups and not scored:
        raise BadInput(
            "there is nothing to serve: no agent has a model of its own that an endpoint does not already "
            "have, and the reward needs no server. Give ensemble=<one with models>, or reward=classifier"
        )
    place.folder.mkdir(parents=True, exist_ok=True)
    numbers = ports(place.host, place.port, len(groups) + scored)
    servers: list[Server] = []
    urls: dict[str, str] = {}
    commands = _vllm_commands([group for group in groups if group.kind == "vllm"])
    for group, port in zip(groups, numbers, strict=False):
        if group.kind == "vllm":
            servers.append(_vllm_server(group, commands[group.first.name], place, port))
        else:
            servers.append(_chat_server(group, place, port))
        urls |= dict.fromkeys(group.agents, f"{place.url(port)}/v1")
    if not scored:
        return Plan(servers, urls, None)
    servers.append(_reward_server(config.reward, place, numbers[-1]))
    return Plan(servers, urls, place.url(numbers[-1]))


def _groups(config: DictConfig, agents: Mapping[str, Agent]) -> list[_Group]:
    groups: list[_Group] = []
    for agent in agents.values():
        engine = engine_node(config, agent)
        if agent.simulated or (_target(engine) == _OPENAI and _url(engine, agent)):
            continue
        kind = _kind(config.server, _target(engine), agent)
        group = next((group for group in groups if group.takes(kind, engine, agent)), None)
        if group is None:
            group = _Group(kind, engine)
            groups.append(group)
        group.agents[agent.name] = agent
    return groups


def _kind(wanted: str, target: str, agent: Agent) -> str:
    if wanted == "auto":
        wanted = {_TRANSFORMERS: "transformers", _VLLM: "vllm"}.get(target, "")
    installed = find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise BadInput(
            f"agent {agent.name!r}: {missing_extra('vllm', 'vllm')}, or set server=transformers for the "
            f"small built-in server"
        )
    return wanted or ("vllm" if installed else "transformers")


def _target(engine: DictConfig) -> str:
    return str(engine.get("_target_"))


def _url(engine: DictConfig, agent: Agent) -> Any:
    return agent.options.get("base_url") or engine.get("base_url")


def _vllm_commands(groups: Sequence[_Group]) -> dict[str, tuple[vllm.Settings, vllm.Share | None]]:
    """How each vLLM server runs, by its first agent."""
    wanted, utilization = {}, 0.9
    for group in groups:
        shared = _plain(group.engine) if _target(group.engine) == _VLLM else {}
        utilization = float(shared.get("gpu_memory_utilization") or utilization)
        wanted[group.first.name] = vllm.Settings.of(group.first, vllm.shared_settings(shared))
    gpus = visible_gpus() if wanted else []
    shares = vllm.place(wanted, gpus, utilization) if gpus else {}
    return {name: (settings, shares.get(name)) for name, settings in wanted.items()}


def visible_gpus() -> list[int]:
    """The indices of the GPUs that servers may use, as CUDA_VISIBLE_DEVICES counts them."""
    import torch

    return list(range(torch.cuda.device_count()))


def _vllm_server(
    group: _Group, how: tuple[vllm.Settings, vllm.Share | None], place: Place, port: int
) -> Server:
    settings, share = how
    command, environment = vllm.command(group.first, settings, share, place.host, port)
    log = place.folder / f"{'+'.join(group.agents)}.log"
    return Server(group.name, command, f"http://{_near(place.host)}:{port}/health", log, environment)


def _chat_server(group: _Group, place: Place, port: int) -> Server:
    engine = group.engine if _target(group.engine) == _TRANSFORMERS else None
    settings = {"_target_": _TRANSFORMERS} if engine is None else _plain(engine)
    members = {
        name: {
            "model": member.model,
            "revision": member.revision,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1},
            "options": {key: value for key, value in member.options.items() if key == "dtype"},
        }
        for name, member in group.agents.items()
    }
    log = place.folder / f"{'+'.join(group.agents)}.log"
    return _worker(group.name, {"engine": settings, "agents": members}, place, port, log)


def _reward_server(node: DictConfig, place: Place, port: int) -> Server:
    build(node, "reward", task=Withheld("task"))  # what is wrong with it is said here, not in a log
    return _worker("reward server", {"reward": _plain(node)}, place, port, place.folder / "reward.log")


def _worker(name: str, spec: dict[str, Any], place: Place, port: int, log: Path) -> Server:
    path = log.with_suffix(".json")
    path.write_text(json.dumps({"host": place.host, "port": port, **spec}, indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "toa_exp.serving.worker", str(path)]
    return Server(name, command, f"http://{_near(place.host)}:{port}/health", log)


def _near(host: str) -> str:
    """The address under which this machine reaches what listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


def served_ensemble(config: DictConfig, agents: Mapping[str, Agent], urls: Mapping[str, str]) -> str:
    """The YAML of an ensemble whose agents are reached at `urls`.

    Models, revisions and sampling stay, and with them what identifies a sample: draws that a local
    engine made are not made again.
    """
    members = {}
    for name, agent in agents.items():
        fields = _plain(config.ensemble.agents[name])
        if name in urls:
            fields.pop("engine", None)
            fields["options"] = {"base_url": urls[name]}
        members[name] = {**fields, "sampling": dict(agent.sampling)}
    text = OmegaConf.to_yaml(OmegaConf.create({"agents": members}))
    return (
        f"# Written by toa-exp serve: the agents of its ensemble, at the servers that it started.\n"
        f"defaults:\n  - override /engine@_global_.engine: openai\n{text}"
    )


def served_reward(node: DictConfig, choice: str, url: str) -> str:
    """The YAML of a reward that is reached at `url`; its identity is what decides its scores."""
    reward: Reward = build(node, "reward", task=Withheld("task"))
    identity = digest(canonical(reward.fingerprint())).hex()[:12]
    fields = {
        "_target_": _HTTP,
        "model": f"{choice}-{identity}",
        "base_url": url,
        "architecture": node.get("architecture")
        or getattr(reward, "architecture", None)  # of an encoder that is not at `model`
        or (node.get("model") if reward.shape else None),
        "output_head": bool(reward.shape and reward.shape.head),
    }
    text = OmegaConf.to_yaml(OmegaConf.create(fields), resolve=True)
    return f"# Written by toa-exp serve: its reward, at the server that it started.\n{text}"


def _plain(node: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
