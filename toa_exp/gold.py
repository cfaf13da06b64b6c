"""Stored runs judged anew: what a gold measure says of the samples that a reward selected.

Nothing is generated: texts come from the store, and so do the scores of a held-out reward that were
made before; new ones go there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from toa_exp.aio import gather_all
from toa_exp.build import build, build_function
from toa_exp.core import Problem, Reply, Request, Usage
from toa_exp.draws import Draw
from toa_exp.errors import BadInput, choose
from toa_exp.patience import Patience
from toa_exp.results import Run, trajectories_of
from toa_exp.rewards.base import Reward
from toa_exp.scorer import Scorer
from toa_exp.selection import pick
from toa_exp.storage import Storage, open_existing
from toa_exp.tasks.base import Task

Value = tuple[float, ...]
"""The gold measure of a sample: one number, or the statistics of a pooled metric."""

_AT_ONCE = 32  # problems that are judged at the same time


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run selected of a problem's first samples.

    `n` is their number, or the budget of a run whose shape depends on it; `samples`, `tokens` and `flops`
    are what they took. `proxy` is the selecting reward of the answer and `gold` its gold measure.
    """

    n: float
    samples: float
    tokens: float
    flops: float
    proxy: float
    gold: Value


@dataclass(frozen=True, slots=True)
class Judged:
    """A problem of a run: what was selected at each n, and (proxy, gold) of some samples."""

    problem: str
    choices: list[Choice]
    samples: list[tuple[float, Value]]


class Gold:
    """The gold measure: a `metric` of the runs' task, or where it is given a `held_out` reward.

    `held_out` is a reward's YAML; what it takes from task and ensemble it takes from those of the run.
    `calibration` samples of each problem are judged beside those that were selected. `store` replaces
    that of the runs.
    """

    def __init__(
        self,
        metric: str | None,
        held_out: DictConfig | None,
        *,
        calibration: int,
        store: str | None,
        retries: int,
        backoff: float,
    ) -> None:
        if calibration < 0:
            raise BadInput(f"calibration={calibration}: give a number of samples a problem, 0 or more")
        self._metric = metric
        self._held_out = held_out
        self._calibration = calibration
        self._store = store
        self._retries = retries
        self._backoff = backoff

    def judge(self, run: Run) -> list[Judged]:
        """The problems of a run that have an answer. Raises BadInput where something is not stored."""
        return asyncio.run(self._judge(run))

    async def _judge(self, run: Run) -> list[Judged]:
        config: Any = OmegaConf.load(run.folder / "config.yaml")
        task: Task = build(config.task, "task")
        async with AsyncExitStack() as held:
            held.push_async_callback(task.close)
            store = held.enter_context(closing(open_existing(str(self._store or config.store.path))))
            measure = self._measure(config, task, store, held)
            judge = _Judge(config, task, store, measure, run, self._calibration)
            found: list[Judged] = []
            problems = judge.problems()
            while group := list(islice(problems, _AT_ONCE)):
                found += await gather_all([judge(problem, lines) for problem, lines in group])
        return [judged for judged in found if judged.choices]

    def _measure(self, config: Any, task: Task, store: Storage, held: AsyncExitStack) -> Measure:
        if self._held_out is None:
            return _Metric(task, self._metric)
        node = OmegaConf.to_container(self._held_out, resolve=False)
        around = {name: OmegaConf.to_container(config[name]) for name in ("task", "ensemble")}
        merged = OmegaConf.create({**around, "held_out": node})
        resolved: Any = OmegaConf.to_container(merged.held_out, resolve=True)
        if resolved == OmegaConf.to_container(config.reward):
            raise SelectedByGold(
                "the held-out reward is the one that the run selected by; choose another one"
            )
        reward: Reward = build(OmegaConf.create(resolved), "held_out", task=task)
        held.push_async_callback(reward.close)
        scorer = Scorer(reward, store, Patience(self._retries, self._backoff, lambda: None))

        async def score(problem: Problem, text: str) -> Value:
            return ((await scorer(problem, text)).reward,)

        return score


class SelectedByGold(BadInput):
    """The held-out reward is the one that a run selected by."""


Measure = Callable[[Problem, str], Awaitable[Value]]


class _Metric:
    """A metric of the task; None takes the first."""

    def __init__(self, task: Task, name: str | None) -> None:
        self._task = task
        self._name = name

    async def __call__(self, problem: Problem, text: str) -> Value:
        metrics = await self._task.score(problem, text)
        if not metrics:
            raise BadInput("the task has no metric of its own; choose a reward: reward@held_out=<choice>")
        name = next(iter(metrics)) if self._name is None else self._name
        if name not in metrics:
            raise choose("gold", name, list(metrics))
        value = metrics[name]
        return (float(value),) if isinstance(value, int | float) else tuple(map(float, value))


class _Judge:
    """Judges the problems of one run."""

    def __init__(
        self, config: Any, task: Task, store: Storage, measure: Measure, run: Run, calibration: int
    ) -> None:
        self._task = task
        self._store = store
        self._measure = measure
        self._run = run
        self._calibration = calibration
        self._select = build_function(config.selection, "selection")
        # A shorter run of such a method is a prefix; the others were shaped by their budget.
        self._anytime = bool(getattr(get_object(config.method._target_), "anytime", False))

    def problems(self) -> Iterator[tuple[Problem, list[Mapping[str, Any]]]]:
        """The problems, each with its lines of trajectories.jsonl."""
        lines: dict[str, list[Mapping[str, Any]]] = {}
        with trajectories_of(self._run.folder).open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                lines.setdefault(record["problem"], []).append(record)
        for problem in self._task.problems():
            if problem.id in lines:
                yield problem, lines.pop(problem.id)
        if lines:
            raise BadInput(
                f"{self._run.folder}: its task has no problem {next(iter(lines))!r} any more; restore its "
                f"data"
            )

    async def __call__(self, problem: Problem, lines: Sequence[Mapping[str, Any]]) -> Judged:
        readings = list(self._readings(lines))
        replies = {id(samples): await self._replies(problem, samples) for _, samples in readings}
        choices = []
        for n, samples in readings:
            known = replies[id(samples)][: len(samples)]
            chosen = await pick(self._select, known, self._task)
            if chosen is None:
                continue
            gold = await self._measure(problem, known[chosen].text)
            tokens = sum(s["prompt_tokens"] + s["completion_tokens"] for s in samples)
            flops = sum(s["flops"] for s in samples)
            choices.append(Choice(n, len(samples), tokens, flops, known[chosen].reward, gold))
        samples = await self._samples(problem, replies[id(readings[-1][1])]) if readings else []
        return Judged(problem.id, choices, samples)

    def _readings(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, list[Any]]]:
        """What to read: each budget, or powers of two of the longest trajectory where it is anytime."""
        if not self._anytime:
            for line in lines:
                yield line["budget"], line["samples"]
            return
        longest: list[Any] = max((line["samples"] for line in lines), key=len)
        n = 1
        while n < len(longest):
            yield n, longest[:n]
            n *= 2
        yield len(longest), longest

    async def _replies(self, problem: Problem, samples: Sequence[Mapping[str, Any]]) -> list[Reply]:
        """The samples with their texts."""
        found = []
        for sample in samples:
            request = Request(sample["agent"], sample["template"])
            usage = Usage(sample["prompt_tokens"], sample["completion_tokens"])
            draw = Draw(bytes.fromhex(sample["draw"]), problem, request, [], b"", b"", 0, 0)
            stored = await self._store.get_draw(draw)
            if stored is None:
                raise BadInput(
                    f"the store has no text for draw {sample['draw']} of problem {problem.id!r} in "
                    f"{self._run.folder}; give the store that the run wrote: store.path=<file>"
                )
            reward = float("-inf") if sample["reward"] is None else sample["reward"]
            found.append(Reply(request, stored.text, reward, usage, sample["failure"]))
        return found

    async def _samples(self, problem: Problem, replies: Sequence[Reply]) -> list[tuple[float, Value]]:
        """Proxy and gold of `calibration` samples, spread evenly over the trajectory."""
        usable = [reply for reply in replies if reply.failure is None]
        count = min(self._calibration, len(usable))
        chosen = [usable[place * len(usable) // count] for place in range(count)]
        golds = await gather_all([self._one(problem, reply.text) for reply in chosen])
        return [(reply.reward, gold) for reply, gold in zip(chosen, golds, strict=True)]

    async def _one(self, problem: Problem, text: str) -> Value:
        return await self._measure(problem, text)
