"""A light stand-in for the runner: methods against networks, all problems at once, draws shared.

Every distinct draw (problem, agent, template, drafts, occurrence) is sampled once and met again by
every method and budget, so that differences between methods are paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from lab.decoding import sample
from lab.network import Network
from lab.writer import Writer
from toa_exp.core import Problem, Reply, Request, Search, Usage
from toa_exp.cost import Architecture, architecture

Score = Callable[[Sequence[tuple[str, str]]], list[float]]
"""From (prompt, answer) pairs to numbers."""
Job = tuple[Callable[..., Search], int, Mapping[str, Any]]
"""A method, its budget and its settings."""
Key = tuple[str, str, tuple[str, ...], int]


@dataclass(slots=True)
class Trail:
    """One run of a method on one problem: its replies in order, with the cost after each."""

    replies: list[Reply]
    flops: list[float]
    tokens: list[int]

    def answer(self, budget: int) -> tuple[str, float, int]:
        """The best-rewarded text of the first `budget` replies, and their FLOPs and tokens."""
        best = max(self.replies[:budget], key=lambda reply: reply.reward)
        return best.text, sum(self.flops[:budget]), sum(self.tokens[:budget])


class Playground:
    """Agents, a reward and problems. `seed` decides all draws made first in one order of runs."""

    def __init__(
        self,
        agents: Mapping[str, Network],
        writer: Writer,
        reward: Score,
        prompts: Sequence[str],
        *,
        temperature: float,
        seed: int,
    ) -> None:
        self.agents, self.writer, self.prompts = agents, writer, list(prompts)
        self._reward, self._temperature, self._seed = reward, temperature, seed
        self._generator = torch.Generator().manual_seed(seed)
        self.draws: dict[Key, tuple[str, int, int]] = {}
        self.rewards: dict[tuple[str, str], float] = {}
        self._shapes: dict[str, Architecture] = {
            name: architecture({**net.shape.config(), "model_type": "llama"}) for name, net in agents.items()
        }

    def use(self, reward: Score) -> None:
        """Score with another reward from now on; draws stay."""
        self._reward, self.rewards = reward, {}

    def run(self, jobs: Sequence[Job]) -> list[list[Trail]]:
        """Run methods on every problem, all side by side; the trails of each job in the problems' order."""
        size = len(self.prompts)
        searches = [
            method(Problem(p, p), list(self.agents), budget, Random(f"{self._seed}/{p}"), **settings)
            for method, budget, settings in jobs
            for p in self.prompts
        ]
        trails = [Trail([], [], []) for _ in searches]
        seen: list[Counter[Any]] = [Counter() for _ in searches]
        waiting: dict[int, list[Request]] = {n: next(search) for n, search in enumerate(searches)}
        while waiting:
            replies = self._answer(waiting, seen)
            following = {}
            for number, got in replies.items():
                self._charge(trails[number], got)
                try:
                    following[number] = searches[number].send(got)
                except StopIteration:
                    continue
            waiting = following
        return [trails[start : start + size] for start in range(0, len(trails), size)]

    def _charge(self, trail: Trail, replies: list[Reply]) -> None:
        for reply in replies:
            usage = reply.usage
            trail.replies.append(reply)
            trail.flops.append(
                self._shapes[reply.request.agent].flops(usage.prompt_tokens, usage.completion_tokens)
            )
            trail.tokens.append(usage.prompt_tokens + usage.completion_tokens)

    def _answer(self, waiting: dict[int, list[Request]], seen: list[Counter[Any]]) -> dict[int, list[Reply]]:
        keys: dict[int, list[Key]] = {}
        for number, requests in waiting.items():
            keys[number] = []
            for request in requests:
                call = (request.agent, tuple(parent.text for parent in request.parents))
                keys[number].append((self.prompts[number % len(self.prompts)], *call, seen[number][call]))
                seen[number][call] += 1
        self._sample({key for group in keys.values() for key in group} - self.draws.keys())
        pairs = {(key[0], self.draws[key][0]) for group in keys.values() for key in group}
        new = sorted(pairs - self.rewards.keys())
        self.rewards.update(zip(new, self._reward(new) if new else [], strict=True))
        return {
            number: [self._reply(request, key) for request, key in zip(waiting[number], group, strict=True)]
            for number, group in keys.items()
        }

    def _reply(self, request: Request, key: Key) -> Reply:
        text, read, written = self.draws[key]
        return Reply(request, text, self.rewards[key[0], text], Usage(read, written))

    def _sample(self, missing: set[Key]) -> None:
        for agent, network in self.agents.items():
            wanted = sorted(key for key in missing if key[1] == agent)
            prompts = [self.writer.prompt(key[0], key[2]) for key in wanted]
            if not prompts:
                continue
            answers = sample(
                network, prompts, self._generator, end=self.writer.end, temperature=self._temperature
            )
            for key, prompt, ids in zip(wanted, prompts, answers, strict=True):
                self.draws[key] = (self.writer.decode(ids), len(prompt), len(ids) + 1)
