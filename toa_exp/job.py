"""A configuration, built: task, agents, engine, reward, method, budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp.budgets import Budgets
from toa_exp.build import build, build_function, call
from toa_exp.core import Search
from toa_exp.cost import Accountant
from toa_exp.draws import digest, encode
from toa_exp.engines.base import Engine
from toa_exp.engines.mixed import Mixed
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import BadInput
from toa_exp.rewards.base import Reward
from toa_exp.runner import Runner, Selection
from toa_exp.sampler import Sampler
from toa_exp.store import Store
from toa_exp.tasks.base import Task
from toa_exp.trajectory import Player


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a configuration describes.

    `problems` is their number, `content` a digest of their ids, prompts and references.
    """

    task: Task
    engine: Engine
    reward: Reward
    method: partial[Search]
    selection: Selection
    budgets: Budgets
    accountant: Accountant
    store: str
    problems: int
    content: str
    config: DictConfig

    @property
    def pools(self) -> dict[str, str]:
        """The import paths of the task's pooled metrics by name; see metrics/pooled.py."""
        return dict(getattr(self.task, "pools", {}))

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

    def sampler(self, store: Store) -> Sampler:
        """The sampler of this job over an open store."""
        config = self.config
        return Sampler(self.engine, self.reward, store, retries=config.retries, backoff=config.backoff)


def assemble(config: DictConfig, overrides: list[str]) -> Job:
    """Build what `config` describes; `overrides` are those of the command line. Raises BadInput."""
    _check_numbers(config)
    task: Task = build(config.task, "task")
    agents = agents_of(_plain(config.ensemble))
    budgets = call(Budgets.of, _plain(config.budget), "budget")
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    # A method given by _target_ alone still has the fields of the YAML that it replaces.
    replaced = "method._target_" in given
    keys = [str(key) for key in config.method if not replaced or f"method.{key}" in given]
    method = build_function(config.method, "method", keys)
    reward: Reward = build(config.reward, "reward", task=task)
    engines = _engines(config, agents)
    _share_gpus([*engines, reward])
    return Job(
        task=task,
        engine=engines[0] if len(engines) == 1 else Mixed(agents, engines),
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
        store=config.store.path,
        problems=task.count(),
        content=_content(task),
        config=config,
    )


def _engines(config: DictConfig, agents: Mapping[str, Agent]) -> list[Engine]:
    """The run's engine, beside those of `engines` where agents name them."""
    nodes = {None: config.engine, **config.engines}
    groups: dict[str | None, dict[str, Agent]] = {}
    for name, agent in agents.items():
        if agent.engine not in nodes:
            raise BadInput(
                f"agent {name!r} names engine {agent.engine!r}; engines has "
                f"{', '.join(config.engines) or 'none'}. Add it: +engine@engines.{agent.engine}=<choice>"
            )
        groups.setdefault(agent.engine, {})[name] = agent
    return [
        build(nodes[name], f"engines.{name}" if name else "engine", agents=members)
        for name, members in groups.items()
    ]


def _share_gpus(parts: Sequence[Engine | Reward]) -> None:
    """Let all that run models here be placed together, by the first engine that plans."""
    planner = next((part for part in parts if hasattr(part, "ground")), None)
    for part in parts:
        if planner is not None and part is not planner and hasattr(part, "join"):
            part.join(planner.ground)


def _content(task: Task) -> str:
    state = hashlib.blake2b(digest_size=8)
    for problem in task.problems():
        state.update(digest(encode(problem.id), encode(problem.prompt), encode(str(problem.reference))))
    return state.hexdigest()


def _plain(node: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, interpolations resolved."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _check_numbers(config: DictConfig) -> None:
    for key, low in {"concurrency": 1, "retries": 0, "seed": 0}.items():
        if not isinstance(config[key], int) or not low <= config[key] < 2**63:
            raise BadInput(f"{key}={config[key]}: give an integer, {low} or more")
    if not isinstance(config.backoff, int | float) or config.backoff < 0:
        raise BadInput(f"backoff={config.backoff}: give a number of seconds, 0 or more")
