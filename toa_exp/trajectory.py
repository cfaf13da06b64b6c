"""One search on one problem: the requests of a method become draws, and draws scored replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from toa_exp.aio import gather_all
from toa_exp.core import Problem, Reply, Request, Search
from toa_exp.cost import Accountant, Cost
from toa_exp.draws import Draw, Message, canonical, digest, draw_key, encode
from toa_exp.errors import BadInput, MethodError
from toa_exp.sampler import Sampler
from toa_exp.tasks.base import Task


@dataclass(slots=True)
class Step:
    """One sample of a trajectory; `parents` are indices of earlier steps."""

    reply: Reply
    parents: tuple[int, ...]
    key: bytes
    cost: Cost

    def record(self) -> dict[str, Any]:
        """The step as it is written to trajectories.jsonl."""
        reply = self.reply
        return {
            "agent": reply.request.agent,
            "template": reply.request.template,
            "parents": list(self.parents),
            "reward": reply.reward if reply.failure is None else None,
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "flops": self.cost.flops,
            "failure": reply.failure,
            "draw": self.key.hex(),
        }


@dataclass(slots=True)
class Trajectory:
    """The steps of a search in the order asked for; `complete` where it made its whole budget."""

    steps: list[Step] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Allowance:
    """A limit in a unit of `Cost.spent`: the search stops once it spent more."""

    unit: str
    limit: float


@dataclass(frozen=True, slots=True)
class Player:
    """Plays searches: renders requests, gives samples their identity, scores them.

    `method` is called with problem, agents, budget and rng; `agents` are the names that it sees.
    """

    task: Task
    method: Callable[[Problem, Sequence[str], int, Random], Search]
    agents: tuple[str, ...]
    sampler: Sampler
    accountant: Accountant
    seed: int

    async def play(self, problem: Problem, budget: int, allowance: Allowance | None = None) -> Trajectory:
        """The trajectory of the method at this budget, which an allowance may cut short.

        Raises MethodError where the method breaks its contract, and Unavailable where a sample or
        score could not be had.
        """
        # Neither method nor budget is in the seed: a shorter run of an anytime method is a prefix.
        rng = Random(f"{self.seed}/{problem.id}")
        search = self.method(problem, self.agents, budget, rng)
        if not isinstance(search, Generator):
            raise MethodError(f"the method returned a {type(search).__name__}; it is a generator that yields")
        game = _Game(self, problem)
        trajectory = game.trajectory
        replies: list[Reply] | None = None
        while True:
            try:
                requests = next(search) if replies is None else search.send(replies)
            except StopIteration:
                break
            except ValueError as error:
                if replies is not None:
                    raise
                raise BadInput(f"the method cannot be run so: {error}") from error
            self._check(requests, len(trajectory.steps), budget)
            first = len(trajectory.steps)
            if not await game.answer(requests, allowance):
                search.close()
                return trajectory
            replies = [step.reply for step in trajectory.steps[first:]]
        if len(trajectory.steps) != budget:
            raise MethodError(f"the method asked for {len(trajectory.steps)} samples of a budget of {budget}")
        trajectory.complete = True
        return trajectory

    def _check(self, requests: list[Request], asked: int, budget: int) -> None:
        if not isinstance(requests, list):
            raise MethodError(f"the method yielded a {type(requests).__name__}; it yields a list of requests")
        if not requests:
            raise MethodError("the method yielded no request; it must return when it is done")
        if asked + len(requests) > budget:
            raise MethodError(f"the method asked for {asked + len(requests)} samples of a budget of {budget}")
        for request in requests:
            if request.agent not in self.agents:
                raise MethodError(
                    f"the method asked agent {request.agent!r}; the ensemble has {', '.join(self.agents)}"
                )


@dataclass(slots=True)
class _Prompt:
    """Rendered messages and the steps that they were rendered from.

    `digest` is of the messages, `simulated` of the reference too, which simulated agents read.
    """

    messages: list[Message]
    parents: tuple[int, ...]
    digest: bytes
    simulated: bytes


class _Game:
    """The state of one search under way."""

    def __init__(self, player: Player, problem: Problem) -> None:
        self.trajectory = Trajectory()
        self._player = player
        self._problem = problem
        self._index: dict[int, int] = {}  # id of a reply -> its step; the steps keep replies alive
        self._prompts: dict[tuple[str, tuple[int, ...]], _Prompt] = {}
        self._asked: dict[tuple[bytes, bytes], int] = {}
        self._spent = Cost()  # counted under an allowance only

    async def answer(self, requests: list[Request], allowance: Allowance | None) -> bool:
        """Append the steps of a batch; False where the allowance ran out."""
        for chunk in self._chunks(requests, allowance):
            runs = [self._step(*self._draw(request)) for request in chunk]
            steps = [await runs[0]] if len(runs) == 1 else await gather_all(runs)
            for step in steps:
                self._index[id(step.reply)] = len(self.trajectory.steps)
                self.trajectory.steps.append(step)
            if allowance is not None:
                for step in steps:
                    self._spent.add(step.cost)
                if self._spent.spent(allowance.unit) > allowance.limit:
                    return False
        return True

    def _chunks(self, requests: list[Request], allowance: Allowance | None) -> Iterator[list[Request]]:
        """The batch at once, or under an allowance half of what it will probably pay for at a time."""
        if allowance is None:
            yield requests
            return
        start = 0
        while start < len(requests):
            spent = self._spent.spent(allowance.unit)
            done = len(self.trajectory.steps)
            size = max(1, int((allowance.limit - spent) * done / spent / 2)) if spent else 1
            yield requests[start : start + size]
            start += size

    def _draw(self, request: Request) -> tuple[Draw, _Prompt]:
        """Give a request its identity."""
        player, problem = self._player, self._problem
        prompt = self._prompt(request)
        agent = player.sampler.agent_digests[request.agent]
        asked = prompt.simulated if request.agent in player.sampler.simulated else prompt.digest
        occurrence = self._asked.get((agent, asked), 0)
        self._asked[agent, asked] = occurrence + 1
        seed = player.seed
        key = draw_key(problem.id, agent, asked, occurrence, seed)
        return Draw(key, problem, request, prompt.messages, agent, asked, occurrence, seed), prompt

    def _prompt(self, request: Request) -> _Prompt:
        try:
            parents = tuple(self._index[id(parent)] for parent in request.parents)
        except KeyError:
            raise MethodError("the method gave a parent that is no reply of this search") from None
        prompt = self._prompts.get((request.template, parents))
        if prompt is None:
            for parent in request.parents:
                if parent.failure is not None:
                    raise MethodError(f"the method gave a failed reply ({parent.failure}) as a parent")
            drafts = [parent.text for parent in request.parents]
            messages = self._player.task.render(self._problem, request.template, drafts)
            asked = digest(canonical(messages))
            simulated = digest(asked, encode(str(self._problem.reference)))
            prompt = _Prompt(messages, parents, asked, simulated)
            self._prompts[request.template, parents] = prompt
        return prompt

    async def _step(self, draw: Draw, prompt: _Prompt) -> Step:
        sample, score = await self._player.sampler.answer(draw)
        reward = -math.inf if score is None else score.reward
        reply = Reply(draw.request, sample.text, reward, sample.usage, sample.failure)
        scored = 0 if score is None else score.tokens
        cost = self._player.accountant(draw.request.agent, sample.usage, sample.seconds, scored)
        return Step(reply, prompt.parents, draw.key, cost)
