"""Where a job runs that is spread over a Ray cluster: what the configuration says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from toa_exp.engines.base import Engine
from toa_exp.engines.replay import Replay
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose, missing_extra
from toa_exp.job import Job
from toa_exp.runner import Observer
from toa_exp.runners.local import Local
from toa_exp.runners.placement import Share
from toa_exp.sampler import Counts


class Ray(Local):
    """Problems in shards of `shard` on `workers` workers; agents and the reward as actors.

    `address` is that of a cluster, "auto" for the one this machine is part of, None for $RAY_ADDRESS
    and, without it, a cluster of this machine alone. Ray sets aside `num_cpus` for a worker, and for
    each replica of an actor what `agent`, `agents` (by name) and `reward` say. A shard whose worker
    dies is given to another, up to `retries` times; an actor is started again up to `restarts` times
    and waited for, up to `patience` seconds.
    """

    def __init__(
        self,
        *,
        address: str | None,
        workers: int,
        shard: int,
        num_cpus: float,
        retries: int,
        restarts: int,
        patience: float,
        agent: Mapping[str, Any],
        agents: Mapping[str, Mapping[str, Any]] | None,
        reward: Mapping[str, Any],
    ) -> None:
        if find_spec("ray") is None:
            raise missing_extra("Ray", "ray")
        for name, value, low in (("workers", workers, 1), ("shard", shard, 1), ("retries", retries, 0),
                                 ("restarts", restarts, 0), ("patience", patience, 0)):  # fmt: skip
            if not low <= value < math.inf:
                raise BadInput(f"runner.{name}={value} must be at least {low}")
        self.address = address
        self.workers = workers
        self.shard = shard
        self.worker = Share(replicas=1, num_cpus=num_cpus)
        self.retries = retries
        self.restarts = restarts
        self.patience = patience
        self._share = Share.of(agent, "runner.agent")
        self._shares = {
            name: Share.of({**agent, **own}, f"runner.agents.{name}") for name, own in (agents or {}).items()
        }
        self.reward_share = Share.of(reward, "runner.reward")

    def engine(self, config: DictConfig, agents: Mapping[str, Agent]) -> Engine:
        """Draws nothing: the agents' engines are elsewhere."""
        for name in self._shares:
            if name not in agents:
                raise choose("agent in runner.agents:", name, list(agents))
        return Replay(agents)

    def agent_share(self, name: str) -> Share:
        """What is set aside for each actor of an agent."""
        return self._shares.get(name, self._share)

    async def run(self, job: Job, path: Path, observer: Observer, counts: Counts) -> None:
        """Write a line a problem and budget to `path`, in the order of the problems."""
        from toa_exp.runners.cluster import Spread

        await Spread(self, job).run(path, observer, counts)
