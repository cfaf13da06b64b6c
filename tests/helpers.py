"""Small stand-ins: a scripted search partner, a task, an engine and a reward."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from toa_exp.budgets import Budgets
from toa_exp.core import Problem, Reply, Request, Search, Usage
from toa_exp.cost import Accountant, architecture
from toa_exp.draws import Draw, Sample, Score
from toa_exp.ensemble import Agent
from toa_exp.runner import Outcome, Runner
from toa_exp.sampler import Sampler
from toa_exp.selection import best_reward
from toa_exp.store import Store
from toa_exp.trajectory import Player

PROBLEM = Problem("p", "What is 1 + 1?", "2")
SMALL = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def play(search: Search, answer: Callable[[Request], Reply]) -> list[Request]:
    """Drive a search with next and send; returns its requests in order."""
    asked: list[Request] = []
    try:
        requests = next(search)
        while True:
            asked += requests
            requests = search.send([answer(request) for request in requests])
    except StopIteration:
        return asked


def replies(seed: int, failing: float = 0.0) -> Callable[[Request], Reply]:
    """Replies with random rewards, a share of them failed."""
    rng = Random(seed)

    def answer(request: Request) -> Reply:
        if rng.random() < failing:
            return Reply(request, "", float("-inf"), Usage(5, 0), "context_window")
        return Reply(request, f"text {rng.random()}", rng.gauss(0, 0.1), Usage(5, 7))

    return answer


def agent(name: str) -> Agent:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
    return Agent(name, f"models/{name}", None, sampling, architecture=SMALL)


class ToyTask:
    """Problems by number; an answer is right when its text ends in an even digit."""

    def __init__(self, problems: int) -> None:
        self._problems = problems

    def count(self) -> int:
        return self._problems

    def problems(self) -> Iterator[Problem]:
        for number in range(self._problems):
            yield Problem(f"p{number}", f"Problem {number}", str(number))

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": "|".join([problem.prompt, template, *drafts])}]

    async def score(self, problem: Problem, text: str) -> Mapping[str, float]:
        return {"accuracy": float(int(text[-1]) % 2 == 0)}

    def fingerprint(self) -> Mapping[str, str]:
        return {"judge": "toy"}

    def final_answer(self, text: str) -> str | None:
        return text[-1]

    async def close(self) -> None:
        pass


class ToyEngine:
    """A pure function of the draw's key; counts what it is asked, and takes its time in any order."""

    def __init__(self, agents: Sequence[str] = ("a", "b", "c"), shuffle: int | None = None) -> None:
        self.agents = {name: agent(name) for name in agents}
        self.asked: list[bytes] = []
        self._shuffle = None if shuffle is None else Random(shuffle)

    async def sample(self, draw: Draw) -> Sample:
        self.asked.append(draw.key)
        if self._shuffle is not None:
            await asyncio.sleep(self._shuffle.random() / 500)
        rng = Random(draw.key)
        text = f"{draw.request.agent} {rng.random()} {rng.randrange(10)}"
        return Sample(text, Usage(len(draw.messages[0]["content"]), rng.randrange(1, 20)), rng.random())

    async def close(self) -> None:
        pass


class ToyReward:
    """A hash of the text."""

    shape = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fingerprint(self) -> Mapping[str, str]:
        return {"reward": "toy"}

    async def score(self, problem: Problem, text: str) -> Score:
        self.asked.append(text)
        return Score(Random(text).gauss(0, 0.1), len(text), 0.001)

    async def close(self) -> None:
        pass


class Seen:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.all: list[Outcome] = []
        self.reasons: dict[str, str] = {}

    def outcomes(self, outcomes: list[Outcome]) -> None:
        self.all += outcomes

    def parked(self, problem: str, reason: str) -> None:
        self.reasons[problem] = reason


def run(
    folder: Path,
    method: Callable[..., Search],
    *,
    engine: object = None,
    reward: object = None,
    problems: int = 6,
    budgets: Budgets | None = None,
    concurrency: int = 3,
    seed: int = 0,
    retries: int = 0,
    store: str = "store.sqlite",
) -> tuple[str, Seen]:
    """Run a method in this process; returns trajectories.jsonl and what an observer saw."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = engine or ToyEngine()
    task, seen = ToyTask(problems), Seen()

    async def carry_out() -> None:
        open_store = Store(folder / store)
        try:
            sampler = Sampler(engine, reward or ToyReward(), open_store, retries=retries, backoff=0.001)
            shapes = {name: architecture(SMALL) for name in engine.agents}
            accountant = Accountant(shapes, dict.fromkeys(shapes), None)
            player = Player(task, method, tuple(engine.agents), sampler, accountant, seed)
            runner = Runner(
                task,
                player,
                budgets or Budgets("samples", (4, 8), 1024),
                best_reward,
                anytime=getattr(method, "anytime", False),
                concurrency=concurrency,
            )
            await runner.run(folder / "trajectories.jsonl", seen)
        finally:
            open_store.close()

    asyncio.run(carry_out())
    path = folder / "trajectories.jsonl"
    return path.read_text() if path.is_file() else "", seen


def decisions(line: dict[str, Any]) -> list[object]:
    """All of an outcome but the seconds."""
    samples = [{key: value for key, value in s.items() if key != "seconds"} for s in line["samples"]]
    return [line["problem"], line["budget"], line["answer"], line["metrics"], samples]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def cli(
    *arguments: str, cwd: Path, timeout: float = 300, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `toa-exp` as a user does."""
    command = [sys.executable, "-m", "toa_exp", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, **options)
