"""What is to be served: the servers that a configuration needs."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from toa_exp.build import build, is_kind, plain
from toa_exp.engines.gpus import Ground
from toa_exp.engines.openai import OpenAI
from toa_exp.engines.seats import Model, Seat
from toa_exp.engines.transformers import Transformers
from toa_exp.engines.vllm import Vllm
from toa_exp.engines.vllm_settings import Settings
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose, missing_extra
from toa_exp.job import engine_node
from toa_exp.rewards.base import Reward
from toa_exp.rewards.http import HTTP
from toa_exp.rewards.judge import Judge
from toa_exp.rewards.simulator import SimulatedReward
from toa_exp.rewards.verifier import Verifier
from toa_exp.serving import vllm
from toa_exp.serving.processes import Server, ports
from toa_exp.serving.scores import Withheld
from toa_exp.serving.vllm import settings_of

SERVERS = ["auto", "transformers", "vllm"]
_ENGINES = {"transformers": Transformers, "vllm": Vllm}
_IN_RUN = (Verifier, SimulatedReward, HTTP, Judge)


@dataclass(frozen=True, slots=True)
class Place:
    """Where servers listen and what they leave behind: `folder` has their logs."""

    host: str
    port: int | None
    folder: Path

    def url(self, port: int) -> str:
        """The URL under which a port is reached."""
        everywhere = self.host in ("0.0.0.0", "::")
        return f"http://{socket.getfqdn() if everywhere else _bracketed(self.host)}:{port}"


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
    def fields(self) -> dict[str, Any]:
        """The fields of its engine, where that is the one which it serves for."""
        return plain(self.engine) if is_kind(self.engine, _ENGINES[self.kind]) else {}

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
    """Servers, and the URLs at which agents and reward will be.

    `made` is, by agent, what its server makes of the model that has a say in its samples.
    """

    servers: Sequence[Server]
    agents: Mapping[str, str]
    made: Mapping[str, Mapping[str, Any]]
    reward: str | None


def plan(config: DictConfig, agents: Mapping[str, Agent], place: Place) -> Plan:
    """The servers that a configuration needs.

    Simulated agents, those that an endpoint already has, and rewards that read more than prompt and
    response need none. Raises BadInput where nothing is left, vLLM is wanted and not installed, or the
    models do not fit onto the GPUs.
    """
    if config.server not in SERVERS:
        raise choose("server", config.server, SERVERS)
    for name, part in (config.reward.get("members") or {}).items():
        if is_kind(part, Judge):
            raise BadInput(
                f"reward.members.{name} is a judge, which reads more of a problem than a server is sent; "
                f"serve without a reward (reward=verifier), and give the ensemble to the run itself"
            )
    groups = _groups(config, agents)
    reward: Reward | None = None
    if not is_kind(config.reward, *_IN_RUN):
        reward = build(config.reward, "reward", task=Withheld("task"))
    if not groups and reward is None:
        raise BadInput(
            "there is nothing to serve: no agent has a model of its own that an endpoint does not already "
            "have, and the reward needs no server. Give ensemble=<one with models>, or reward=classifier"
        )
    ours = [group for group in groups if group.kind == "vllm"]
    settings = {group.first.name: settings_of(group.first, group.fields) for group in ours}
    seats = _seats(ours, settings, reward)
    place.folder.mkdir(parents=True, exist_ok=True)
    numbers = ports(place.host, place.port, len(groups) + (reward is not None))
    servers: list[Server] = []
    urls: dict[str, str] = {}
    made = {name: agent.deciding for name, agent in agents.items()}
    for group, port in zip(groups, numbers, strict=False):
        name = group.first.name
        if group.kind == "vllm":
            servers.append(_vllm_server(group, settings[name], seats.get(name), len(ours), place, port))
            deciding = dict.fromkeys(group.agents, settings[name].deciding())
        else:
            servers.append(_chat_server(group, place, port))
            deciding = {n: Transformers.deciding(one, group.fields) for n, one in group.agents.items()}
        made |= {n: {**one.deciding, **deciding[n]} for n, one in group.agents.items()}
        urls |= dict.fromkeys(group.agents, f"{place.url(port)}/v1")
    if reward is None:
        return Plan(servers, urls, made, None)
    servers.append(_reward_server(config.reward, seats, place, numbers[-1]))
    return Plan(servers, urls, made, place.url(numbers[-1]))


def _groups(config: DictConfig, agents: Mapping[str, Agent]) -> list[_Group]:
    groups: list[_Group] = []
    for agent in agents.values():
        engine = engine_node(config, agent)
        if agent.simulated or (is_kind(engine, OpenAI) and _url(engine, agent)):
            continue
        kind = _kind(config.server, engine, agent)
        group = next((group for group in groups if group.takes(kind, engine, agent)), None)
        if group is None:
            group = _Group(kind, engine)
            groups.append(group)
        group.agents[agent.name] = agent
    return groups


def _kind(wanted: str, engine: DictConfig, agent: Agent) -> str:
    if wanted == "auto":
        wanted = next((kind for kind, own in _ENGINES.items() if is_kind(engine, own)), "")
    installed = find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise BadInput(
            f"agent {agent.name!r}: {missing_extra('vllm', 'vllm')}, or set server=transformers for the "
            f"small built-in server"
        )
    return wanted or ("vllm" if installed else "transformers")


def _url(engine: DictConfig, agent: Agent) -> Any:
    return agent.options.get("base_url") or engine.get("base_url")


def _seats(
    groups: Sequence[_Group], settings: Mapping[str, Settings], reward: Reward | None
) -> Mapping[str, Seat]:
    """Places on the GPUs, by agent, and the reward's beside vLLM's servers; none where there are no GPUs.

    As a run with engine=vllm plans them, but that nobody takes turns: a server is asked at any time.
    """
    ground = Ground(residents=len(groups))
    for group in groups:
        models = partial(_models, group, settings[group.first.name])
        ground.add(models, f"agents {', '.join(group.agents)}", **_terms(group))
    if groups and reward is not None and hasattr(reward, "join"):
        reward.join(ground)
    made = ground.plan() if groups else None
    return {} if made is None else made.seats


def _models(group: _Group, settings: Settings) -> list[Model]:
    first = group.first
    whose = f"agent {first.name!r}"
    return [settings.model(first.name, first.model, first.revision, whose, agents=list(group.agents))]


def _terms(group: _Group) -> dict[str, Any]:
    """What of the GPUs a vLLM server's engine would use."""
    if not group.fields:
        return {}
    engine: Vllm = build(group.engine, group.first.place, agents={})
    gpus, utilization, _ = engine.ground.terms
    return {"gpus": gpus, "gpu_memory_utilization": utilization}


def _vllm_server(
    group: _Group, settings: Settings, seat: Seat | None, servers: int, place: Place, port: int
) -> Server:
    command, environment = vllm.command(group.first, settings, seat, servers, place.host, port)
    log = place.folder / f"{'+'.join(group.agents)}.log"
    health = f"http://{_near(place.host)}:{port}/health"
    return Server(group.name, command, health, log, environment, seat.gpus if seat else ())


def _chat_server(group: _Group, place: Place, port: int) -> Server:
    settings = group.fields or {"_target_": f"{Transformers.__module__}.{Transformers.__name__}"}
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


def _reward_server(node: DictConfig, seats: Mapping[str, Seat], place: Place, port: int) -> Server:
    """The server of the reward, or of the members of one; it sees the GPUs that these have."""
    fields = plain(node)
    parts = {"reward": fields}
    parts |= {f"reward.members.{name}": part for name, part in (fields.get("members") or {}).items()}
    gpus = sorted({gpu for name in parts if name in seats for gpu in seats[name].gpus})
    for name, part in parts.items():
        if name not in seats:
            continue
        seat, seen = seats[name], [gpus.index(gpu) for gpu in seats[name].gpus]
        if "gpu_memory_utilization" in part:  # it plans for itself, of the GPUs that it sees
            part |= {"gpus": seen if len(gpus) > len(seen) else None, "gpu_memory_utilization": seat.share}
        elif "devices" in part:
            part |= {"devices": seen[:1]}
        elif "device" in part:
            part |= {"device": f"cuda:{seen[0]}"}
    server = _worker("reward server", {"reward": fields}, place, port, place.folder / "reward.log")
    return replace(server, environment=vllm.on_gpus(gpus), gpus=tuple(gpus)) if gpus else server


def _worker(name: str, spec: dict[str, Any], place: Place, port: int, log: Path) -> Server:
    path = log.with_suffix(".json")
    path.write_text(json.dumps({"host": place.host, "port": port, **spec}, indent=1) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "toa_exp.serving.worker", str(path)]
    return Server(name, command, f"http://{_near(place.host)}:{port}/health", log)


def _near(host: str) -> str:
    """The address under which this machine reaches what listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, _bracketed(host))


def _bracketed(host: str) -> str:
    """A host as URLs have it."""
    return f"[{host}]" if ":" in host else host
