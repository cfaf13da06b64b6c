"""Agents and the reward as Ray actors, and what stands for them where searches run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from toa_exp.core import Problem, Reply, Request
from toa_exp.draws import Draw, Sample, Score
from toa_exp.engines.base import Engine
from toa_exp.engines.mixed import Mixed
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import Permanent, Unavailable
from toa_exp.job import task_of
from toa_exp.rewards.base import Reward
from toa_exp.runners.connection import first_line
from toa_exp.runners.local import Local
from toa_exp.runners.settings import Settings
from toa_exp.tasks.base import Task

log = logging.getLogger(__name__)

_PING = 1.0  # seconds between two looks at an actor that is being started again
_SETTLES = 30.0  # seconds until all that an actor held is free after its death; see engines/orphans.py


class Actor:
    """Holds the engine of one agent, or, without an agent, the reward."""

    def __init__(self, settings: Settings, agent: str | None) -> None:
        self._settings = settings
        self._agent = agent
        self._part: Engine | Reward | None = None
        self._ask: Callable[..., Awaitable[Any]] = self._ask_first

    async def ready(self) -> None:
        """Build what is held, and plan its GPUs; raises BadInput where the configuration does not fit."""
        if self._part is not None:
            return
        config, place = self._settings.enter(), Local()
        if self._agent is None:
            self._part, self._ask = place.reward(config, task_of(config)), self._score
        else:
            agents = agents_of(self._settings.config["ensemble"])
            engine = place.engine(config, {self._agent: agents[self._agent]})
            self._part, self._ask = engine, engine.sample
        ground = getattr(self._part, "ground", None)
        if ground is not None:
            await asyncio.to_thread(ground.plan)  # which would be made for the first draw

    async def ask(self, *given: Any) -> Any:
        """The sample of a draw, or the score of a problem's text by the reward, or by a member of it."""
        return await self._ask(*given)

    async def close(self) -> None:
        """Free what is held."""
        if self._part is not None:
            await self._part.close()

    async def _ask_first(self, *given: Any) -> Any:
        await self.ready()  # it was started again
        return await self._ask(*given)

    async def _score(self, problem: Problem, text: str, *names: str) -> Score:
        reward: Any = self._part
        for name in names:
            reward = reward.members[name]
        score: Score = await reward.score(problem, text)
        return score


@dataclass(slots=True, eq=False)
class _Replica:
    """An actor; `under_way` counts the requests of this process, `back` waits for one that died.

    `fault` is what it last raised when it was to start again.
    """

    actor: Any
    under_way: int = 0
    back: asyncio.Task[None] | None = None
    lost: bool = False
    fault: BaseException | None = None


class Replicas:
    """Actors that answer the same requests; each goes to the one that has fewest under way.

    What is asked of one that dies is asked of another; where there is none, one that is started
    again is waited for, up to `patience` seconds, but not where it cannot be: what it raises then is
    raised here. `start` says which is first among equals.
    """

    def __init__(self, name: str, actors: Sequence[Any], patience: float, start: int) -> None:
        self._name = name
        self._patience = patience
        first = start % len(actors)
        self._replicas = [_Replica(actor) for actor in (*actors[first:], *actors[:first])]

    async def ask(self, *given: Any) -> Any:
        """The answer; raises what the actor raises, and Unavailable where none could be had."""
        while True:
            replica = await self._choose()
            replica.under_way += 1
            try:
                return await replica.actor.ask.remote(*given)
            except RayTaskError as error:
                raise unwrapped(error) from None
            except RayActorError as error:
                if replica.back is None:
                    log.warning("%s: an actor died (%s)", self._name, first_line(error))
                    replica.back = asyncio.create_task(self._await(replica))
            except RayError as error:
                raise Unavailable(f"{self._name}: {first_line(error)}") from error
            finally:
                replica.under_way -= 1

    async def _choose(self) -> _Replica:
        while True:
            here = [replica for replica in self._replicas if replica.back is None]
            if here:
                return min(here, key=lambda replica: replica.under_way)
            waits = [replica.back for replica in self._replicas if replica.back and not replica.lost]
            if waits:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            else:
                raise self._gone()

    def _gone(self) -> BaseException:
        """Why there is no actor any more."""
        faults = [replica.fault for replica in self._replicas if replica.fault is not None]
        for fault in filter(_lasts, faults):
            return fault
        last = f" ({faults[-1]})" if faults else ""
        return Unavailable(
            f"{self._name}: every actor died, and was not started again or not back in "
            f"{self._patience:.0f} s{last}. See the logs of Ray for why; runner.restarts tries more often, "
            f"runner.patience waits longer"
        )

    async def _await(self, replica: _Replica) -> None:
        """Wait for an actor that died, until it is back or lost."""
        deadline = time.monotonic() + self._patience
        settled = time.monotonic() + _SETTLES
        while time.monotonic() < deadline:
            try:
                await asyncio.wait_for(replica.actor.ready.remote(), deadline - time.monotonic())
            except ActorDiedError:
                break
            except RayTaskError as error:
                replica.fault = unwrapped(error)
                if _lasts(replica.fault) and time.monotonic() >= settled:
                    log.warning("%s: an actor cannot be started again: %s", self._name, replica.fault)
                    break
            except (RayError, TimeoutError):
                pass
            else:
                log.warning("%s: an actor is back", self._name)
                replica.back = replica.fault = None
                return
            await asyncio.sleep(_PING)
        replica.lost = True


class RemoteEngine:
    """Stands for the engine where searches run."""

    def __init__(self, agents: Mapping[str, Agent], replicas: Mapping[str, Replicas]) -> None:
        self.agents = agents
        self._replicas = replicas

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw, by an actor of its agent."""
        sample: Sample = await self._replicas[draw.request.agent].ask(_light(draw))
        return sample

    async def close(self) -> None:
        """The actors are others' too."""


class RemoteReward:
    """Stands for a reward where searches run; `local` says what it is, and scores nothing.

    Of the reward that actors have it is the member that `names` lead to.
    """

    def __init__(self, local: Reward, replicas: Replicas, *names: str) -> None:
        self.shape = local.shape
        self.fingerprint = local.fingerprint
        self.range = getattr(local, "range", None)
        self.warms_up = getattr(local, "warms_up", True)
        self._local = local
        self._replicas = replicas
        self._names = names

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text, by an actor."""
        score: Score = await self._replicas.ask(problem, text, *self._names)
        return score

    async def close(self) -> None:
        """Free what the stand-in holds; the actors are others' too."""
        await self._local.close()


@dataclass(frozen=True)
class Actors:
    """The actors of a run: those of each agent by its name, and those of the reward."""

    agents: Mapping[str, Sequence[Any]]
    reward: Sequence[Any]
    patience: float


class Remote(Local):
    """Searches here, agents and the reward as actors where they have any; `start` is as in Replicas."""

    def __init__(self, actors: Actors, start: int) -> None:
        self._actors = actors
        self._start = start

    def engine(self, config: DictConfig, agents: Mapping[str, Agent]) -> Engine:
        """What draws the samples; of agents without an actor, an engine here."""
        actors = self._actors.agents
        replicas = {n: self._replicas(f"agent {n!r}", actors[n]) for n in agents if actors[n]}
        there = RemoteEngine({name: agents[name] for name in replicas}, replicas)
        own = {name: agent for name, agent in agents.items() if name not in replicas}
        return Mixed(agents, [there, super().engine(config, own)]) if own else there

    def reward(self, config: DictConfig, task: Task) -> Reward:
        """What scores them; without an actor, the reward itself."""
        local = super().reward(config, task)
        actors = self._actors.reward
        return stand_in(local, self._replicas("reward", actors)) if actors else local

    def _replicas(self, name: str, actors: Sequence[Any]) -> Replicas:
        return Replicas(name, actors, self._actors.patience, self._start)


def stand_in(local: Any, replicas: Replicas, *names: str) -> Any:
    """What stands for a reward where searches run.

    One that has members goes on combining their scores here, where each is stored under its own key as in
    a run on one machine; what holds a model is a member's own stand-in. `names` lead to the member.
    """
    members = getattr(local, "members", {})
    if not members:
        return RemoteReward(local, replicas, *names)
    for name, member in members.items():
        members[name] = stand_in(member, replicas, *names, name)
    return local


def unwrapped(error: RayTaskError) -> BaseException:
    """What was raised on the other side."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def _lasts(fault: BaseException) -> bool:
    """Whether what an actor raised will be raised again."""
    return not isinstance(fault, Unavailable) or isinstance(fault, Permanent)


def _light(draw: Draw) -> Draw:
    """The draw without the ancestors of its parents, which grow with the tree and no engine reads."""
    request = draw.request
    if not request.parents:
        return draw
    parents = tuple(_without_parents(parent) for parent in request.parents)
    return replace(draw, request=replace(request, parents=parents))


def _without_parents(reply: Reply) -> Reply:
    return replace(reply, request=Request(reply.request.agent, reply.request.template))
