"""A configuration, built: task, agents, engine, reward, method, budgets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from toa_exp.budgets import Budgets
from toa_exp.build import build, build_function, call, is_kind, plain, shown, target_of
from toa_exp.core import Search
from toa_exp.cost import Accountant
from toa_exp.draws import digest, encode
from toa_exp.engines.base import Engine
from toa_exp.engines.gpus import Ground
from toa_exp.engines.mixed import Mixed
from toa_exp.engines.replay import Replay
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import BadInput, told_at
from toa_exp.rewards.base import Reward
from toa_exp.rewards.warmup import WarmUp, check_tau, warm_up_of
from toa_exp.runner import Runner
from toa_exp.sampler import Counts, Sampler
from toa_exp.selection import Selection
from toa_exp.storage import Storage, path_of
from toa_exp.tasks.base import Task
from toa_exp.trajectory import Player

if TYPE_CHECKING:
    from toa_exp.runners.local import Local

_PARTS = ("task", "ensemble", "engine", "reward", "method", "selection", "budget", "store", "runner")


@dataclass(frozen=True)
class Job:
    """Everything that a configuration describes; `place` is where it runs, on the GPUs of `ground`."""

    task: Task
    engine: Engine
    reward: Reward
    method: partial[Search]
    selection: Selection
    budgets: Budgets
    accountant: Accountant
    store: str
    place: Local
    ground: Ground | None
    warm_up: WarmUp | None
    config: DictConfig
    overrides: list[str]

    @cached_property
    def problems(self) -> int:
        """How many problems there are. Raises BadInput where the task's data cannot be used."""
        return self.task.count()

    @cached_property
    def content(self) -> str:
        """A digest of the problems' ids, prompts and references."""
        state = hashlib.blake2b(digest_size=8)
        for problem in self.task.problems():
            state.update(digest(encode(problem.id), encode(problem.prompt), encode(str(problem.reference))))
        return state.hexdigest()

    @property
    def pools(self) -> dict[str, str]:
        """The import paths of the task's pooled metrics by name; see metrics/pooled.py."""
        return dict(getattr(self.task, "pools", {}))

    def check_concurrency(self) -> None:
        """Have the plan for the GPUs warn where too few of the problems are open for its engines."""
        if self.ground is not None and self.problems > self.config.concurrency:
            self.ground.concurrency = self.config.concurrency

    def runner(self, sampler: Sampler) -> Runner:
        """The runner of this job over a sampler of its own."""
        config = self.config
        agents = tuple(self.engine.agents)
        player = Player(self.task, self.method, agents, sampler, self.accountant, config.seed)
        return Runner(
            self.task,
            player,
            self.budgets,
            self.selection,
            anytime=getattr(self.method.func, "anytime", False),
            concurrency=config.concurrency,
        )

    def sampler(self, store: Storage, counts: Counts) -> Sampler:
        """The sampler of this job over an open store; it counts in `counts`."""
        config = self.config
        return Sampler(
            self.engine,
            self.reward,
            store,
            retries=config.retries,
            backoff=config.backoff,
            counts=counts,
            first=self.warm_up,
        )


def assemble(config: DictConfig, overrides: list[str], place: Local | None = None) -> Job:
    """Build what `config` describes; `overrides` are those of the command line. Raises BadInput.

    `place` stands in for the configuration's runner.
    """
    _check_numbers(config)
    check_parts(config)
    if place is None:
        place = build(config.runner, "runner")
    task = task_of(config)
    agents = {name: _decided(agent, config) for name, agent in agents_of(plain(config.ensemble)).items()}
    if hasattr(task, "check_agents"):
        task.check_agents(agents.values())
    budgets = call(Budgets.of, plain(config.budget), "budget")
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    # A method given by _target_ alone still has the fields of the YAML that it replaces.
    replaced = "method._target_" in given
    keys = [str(key) for key in config.method if not replaced or f"method.{key}" in given]
    method = build_function(config.method, "method", keys)
    reward = place.reward(config, task)
    engine = place.engine(config, agents)
    ground = share_gpus([*getattr(engine, "engines", [engine]), reward])
    tau = method.keywords.get("tau")
    check_tau(tau, reward)
    return Job(
        task=task,
        engine=engine,
        reward=reward,
        method=method,
        selection=build_function(config.selection, "selection"),
        budgets=budgets,
        accountant=Accountant(
            {name: agent.shape() for name, agent in agents.items()},
            {name: agent.price for name, agent in agents.items()},
            reward.shape,
            config.flops,
        ),
        store=path_of(config.store),
        place=place,
        ground=ground,
        warm_up=warm_up_of(reward, task, _plain(config.get("warm_up")) or None, tau),
        config=config,
        overrides=overrides,
    )


def task_of(config: DictConfig) -> Task:
    """The run's task."""
    task: Task = build(config.task, "task")
    return task


def check_parts(config: DictConfig) -> None:
    """Raise BadInput where one of the parts that a run has is none."""
    for name in _PARTS:
        if not isinstance(config[name], DictConfig):
            raise BadInput(
                f"{name}={shown(config[name])} is no mapping of fields; give {name}=<choice>, one of "
                f"`toa-exp run --help`"
            )


def engine_node(config: DictConfig, agent: Agent) -> DictConfig:
    """The configuration of an agent's engine; raises BadInput for one that is not there, or none."""
    name, engines = agent.engine, config.engines
    if name is None:
        default: DictConfig = config.engine
        return default
    add = f"+engine@engines.{name}"
    if not isinstance(engines, DictConfig):
        raise BadInput(
            f"agent {agent.name!r} names engine {name!r}, and engines={shown(engines)} is no mapping of "
            f"engines by name; leave that out, and add it: {add}=<choice>"
        )
    if name not in engines:
        from difflib import get_close_matches

        near = get_close_matches(name, map(str, engines), n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(
            f"agent {agent.name!r} names engine {name!r}; engines has {', '.join(engines) or 'none'}.{meant} "
            f"Add it: {add}=<choice> (see toa-exp run --help), or leave `engine` out for the run's own"
        )
    node = engines[name]
    if not isinstance(node, DictConfig) or not node.get("_target_"):
        choice = node if isinstance(node, str) else "<choice>"
        raise BadInput(
            f"engines.{name}={shown(node)}, which agent {agent.name!r} names, is no engine; a choice of the "
            f"group engine is given as {add}={choice}"
        )
    return node


def _decided(agent: Agent, config: DictConfig) -> Agent:
    """The agent with what its engine's settings have to do with its samples, wherever the engine is."""
    node = engine_node(config, agent)
    deciding = getattr(target_of(node), "deciding", None)
    if deciding is None:
        return agent
    return replace(agent, deciding={**agent.deciding, **deciding(agent, plain(node))})


def share_gpus(parts: Sequence[Engine | Reward]) -> Ground | None:
    """Let all that run models here be placed together, by the first that plans; None where none does.

    One that was told how to plan comes before those that were not.
    """
    grounds = [own for part in parts if isinstance(own := getattr(part, "ground", None), Ground)]
    if not grounds:
        return None
    ground = max(grounds, key=lambda own: own.terms != Ground().terms)
    for part in parts:
        if hasattr(part, "join") and getattr(part, "ground", None) is not ground:
            part.join(ground)
    return ground


def engine_of(config: DictConfig, agents: Mapping[str, Agent]) -> Engine:
    """The run's engine, beside those of `engines` where agents name them; engine=replay stands for all.

    The engines that agents name still say what decides their samples (`engine_node`), of which replay knows
    nothing.
    """
    if is_kind(config.engine, Replay):
        replay: Engine = build(config.engine, "engine", agents=agents)
        return replay
    nodes: dict[str | None, DictConfig] = {}
    groups: dict[str | None, dict[str, Agent]] = {}
    for name, agent in agents.items():
        nodes[agent.engine] = engine_node(config, agent)
        groups.setdefault(agent.engine, {})[name] = agent
    engines: list[Engine] = []
    for own, members in groups.items():
        place = next(iter(members.values())).place
        with told_at("engine", place):
            engines.append(build(nodes[own], place, agents=members))
    return engines[0] if len(engines) == 1 else Mixed(agents, engines)


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, DictConfig) else value


def _check_numbers(config: DictConfig) -> None:
    for key, low in {"concurrency": 1, "retries": 0, "seed": 0}.items():
        if not isinstance(config[key], int) or not low <= config[key] < 2**63:
            raise BadInput(f"{key}={config[key]}: give an integer, {low} or more")
    if not isinstance(config.backoff, int | float) or not 0 <= config.backoff < math.inf:
        raise BadInput(f"backoff={config.backoff}: give a number of seconds, 0 or more")
