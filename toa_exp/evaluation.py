"""Measures stored runs anew: answers from the store, chosen as before or otherwise."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from toa_exp import labels, records
from toa_exp.aio import gather_all
from toa_exp.build import build, build_function, plain
from toa_exp.core import Problem, Reply, Request, Usage
from toa_exp.cost import Cost
from toa_exp.curves import Curve
from toa_exp.draws import Sample, canonical, decode, digest
from toa_exp.engines.base import Engine
from toa_exp.engines.replay import Replay
from toa_exp.ensemble import agents_of
from toa_exp.errors import BadInput, Incomplete
from toa_exp.metrics.base import Metric
from toa_exp.metrics.of_run import Answered, RunMetric, TaskMetrics, WinRate
from toa_exp.metrics.pooled import pools_of
from toa_exp.results import trajectories_of
from toa_exp.rewards.base import Reward
from toa_exp.runner import Outcome
from toa_exp.sampler import Counts, Sampler
from toa_exp.selection import Selection, pick
from toa_exp.storage import Storage, open_existing
from toa_exp.tasks.base import Task

log = logging.getLogger(__name__)
CHOICES = ("selection", "reward")


@dataclass(slots=True)
class _Line:
    """A line of trajectories.jsonl, with what is made of it."""

    record: dict[str, Any]
    replies: list[Reply]
    answer: int | None


async def evaluate(folder: Path, config: DictConfig, choices: Mapping[str, str]) -> str:
    """Add `config.metric` to the run in `folder`; returns the curve as text.

    `choices` are those of the groups. Raises BadInput where the store lacks a text or the task's
    data have changed.
    """
    run = _configuration(folder)
    changed = [group for group in CHOICES if group in choices]
    for group in changed:
        run[group] = config[group]
    async with AsyncExitStack() as held:
        task: Task = build(run.task, "task")
        held.push_async_callback(task.close)
        store = held.enter_context(closing(_store(run, config)))
        metric = _metric(config, task, store)
        held.push_async_callback(metric.close)
        problems = {problem.id: problem for problem in task.problems()}
        numbers = _numbers(store)
        lines = [_line(record, store, numbers, problems, folder) for record in _records(folder)]
        if "reward" in changed:
            reward: Reward = build(run.reward, "reward", task=task)
            held.push_async_callback(reward.close)
            await _score_anew(lines, problems, _sampler(Replay({}), reward, store, config))
        if changed:
            await _choose(lines, build_function(run.selection, "selection"), task)
            for line in lines:
                line.record["metrics"] = None if line.answer is None else {}
            await _measure(lines, problems, TaskMetrics(task=task))
        if isinstance(metric, WinRate):
            _forget(lines, metric)
        await _measure(lines, problems, metric)
        if isinstance(metric, WinRate):
            _annotations(_target(folder, changed, choices), lines, problems, metric)
        pools = {**getattr(task, "pools", {}), **metric.pools} if changed else metric.pools
        measured = {choices["metric"]: dict(metric.fingerprint())}
    return _publish(folder, run, changed, choices, lines, pools, measured)


def derived(folder: Path) -> bool:
    """Whether `evaluate` made the run in a folder, of the answers of another one."""
    return "derived" in _configuration(folder).run


def _configuration(folder: Path) -> DictConfig:
    labels.register()
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def _metric(config: DictConfig, task: Task, store: Storage) -> RunMetric:
    """The metric, with what it needs: the task, a judge of its own, a sampler of its judge's engine."""
    values = plain(config.metric)
    needs = get_object(str(values["_target_"])).needs
    given: dict[str, Any] = {"task": task} if "task" in needs else {}
    if "judge" in needs:
        given["judge"] = build(DictConfig(values.pop("judge")), "metric.judge")
    if "sampler" in needs:
        agents = agents_of({"agents": {"judge": values.pop("agent")}})
        engine: Engine = build(DictConfig(values.pop("engine")), "metric.engine", agents=agents)
        given["engine"] = engine
        given["sampler"] = _sampler(engine, None, store, config)
    made: RunMetric = build(DictConfig(values), "metric", **given)
    return made


def _sampler(engine: Engine, reward: Reward | None, store: Storage, config: DictConfig) -> Sampler:
    return Sampler(engine, reward, store, retries=config.retries, backoff=config.backoff)


def _store(run: DictConfig, config: DictConfig) -> Storage:
    return open_existing(str(config.store.path or run.store.path))


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    with trajectories_of(folder).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _numbers(store: Storage) -> dict[str, int]:
    """The numbers of the problems in the store, by id."""
    return {decode(name): number for number, name in store.rows("SELECT number, id FROM problems")}


def _line(
    record: dict[str, Any],
    store: Storage,
    numbers: Mapping[str, int],
    problems: Mapping[str, Problem],
    folder: Path,
) -> _Line:
    """A line with its texts, which are looked up by the keys of their draws."""
    if record["problem"] not in problems:
        raise BadInput(
            f"{folder}: problem {record['problem']!r} is none of the task's any more; its data have changed"
        )
    query = (
        f"SELECT key, text FROM draws WHERE problem = ? AND key IN ({','.join('?' * len(record['samples']))})"
    )
    keys = [bytes.fromhex(sample["draw"]) for sample in record["samples"]]
    found = store.rows(query, (numbers.get(record["problem"], -1), *keys))
    texts = {key: decode(text) for key, text in found}
    replies = []
    for key, sample in zip(keys, record["samples"], strict=True):
        if key not in texts:
            raise BadInput(
                f"{store.name} has no draw {key.hex()} of problem {record['problem']!r}; give the store "
                f"of this run: store.path=<file or URL>"
            )
        reward = -math.inf if sample["reward"] is None else sample["reward"]
        usage = Usage(sample["prompt_tokens"], sample["completion_tokens"])
        request = Request(sample["agent"], sample["template"])
        replies.append(Reply(request, texts[key], reward, usage, sample["failure"]))
    return _Line(record, replies, record["answer"])


async def _score_anew(lines: Sequence[_Line], problems: Mapping[str, Problem], sampler: Sampler) -> None:
    """Give every sample the reward of another model, through the store."""
    for line in lines:
        problem = problems[line.record["problem"]]
        samples = [Sample(reply.text, reply.usage, 0.0, reply.failure) for reply in line.replies]
        scores = await gather_all([sampler.score(problem, sample) for sample in samples])
        for place, score in enumerate(scores):
            if score is not None:
                line.replies[place] = replace(line.replies[place], reward=score.reward)
                line.record["samples"][place]["reward"] = score.reward


async def _choose(lines: Sequence[_Line], selection: Selection, task: Task) -> None:
    for line in lines:
        line.answer = line.record["answer"] = await pick(selection, line.replies, task)


def _answered(lines: Sequence[_Line], problems: Mapping[str, Problem]) -> list[Answered]:
    return [
        Answered(problems[line.record["problem"]], line.record["budget"], line.replies, line.answer)
        for line in lines
        if line.answer is not None
    ]


async def _measure(lines: Sequence[_Line], problems: Mapping[str, Problem], metric: RunMetric) -> None:
    answered = _answered(lines, problems)
    if not answered:
        raise Incomplete("no problem of the run has an answer; there is nothing to measure")
    found: list[Mapping[str, Metric]] = await metric.measure(answered)
    with_answer = [line for line in lines if line.answer is not None]
    for line, metrics in zip(with_answer, found, strict=True):
        line.record["metrics"] = {**line.record["metrics"], **metrics}


def _forget(lines: Sequence[_Line], metric: WinRate) -> None:
    """Drop what was measured before under one of two names, of which the metric gives either."""
    for line in lines:
        for name in metric.either:
            (line.record["metrics"] or {}).pop(name, None)


def _annotations(
    target: Path, lines: Sequence[_Line], problems: Mapping[str, Problem], metric: WinRate
) -> None:
    """Write the comparisons at each budget as AlpacaEval's annotations, which `toa-exp score` takes."""
    target.mkdir(parents=True, exist_ok=True)
    for budget in dict.fromkeys(line.record["budget"] for line in lines):
        rows = metric.compared(_answered([l for l in lines if l.record["budget"] == budget], problems))  # noqa: E741
        path = target / f"annotations-{budget:g}.json"
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        log.info("comparisons at budget %g are in %s", budget, path)


def _target(folder: Path, changed: Sequence[str], choices: Mapping[str, str]) -> Path:
    """The run folder itself, or where something is chosen anew one beside it."""
    marks = [f"{group}={choices[group]}" for group in changed]
    method = ",".join([folder.parent.name, *marks])
    return folder.parent.parent / method / folder.name if changed else folder


def _publish(
    folder: Path,
    run: DictConfig,
    changed: Sequence[str],
    choices: Mapping[str, str],
    lines: Sequence[_Line],
    pools: Mapping[str, str],
    measured: Mapping[str, Any],
) -> str:
    target = _target(folder, changed, choices)
    target.mkdir(parents=True, exist_ok=True)
    values: Any = OmegaConf.to_container(run, resolve=True)
    if changed:
        values["run"] |= {group: choices[group] for group in changed}
        values["run"]["method"] = target.parent.name
        values["run"] |= {"pools": {}, "measured": {}, "derived": {g: choices[g] for g in changed}}
        material = {"before": values["run"]["configuration"], **{group: values[group] for group in changed}}
        values["run"]["configuration"] = digest(canonical(material)).hex()[:8]
    values["run"]["pools"] |= pools
    values["run"]["measured"] = {**values["run"].get("measured", {}), **measured}
    curve = _curve(folder, values, lines)
    partial = target / "trajectories.jsonl.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line.record, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    rows = curve.rows()
    records.publish(target, partial, values, rows)
    made = [
        f"{name}: " + "|".join(f"{key}:{value}" for key, value in records.flat(parts).items())
        for name, parts in measured.items()
    ]
    return records.table(rows, values, target, Counts(), made)


def _curve(folder: Path, values: Mapping[str, Any], lines: Sequence[_Line]) -> Curve:
    """The curve of the lines; problems that were parked in the run stay counted."""
    with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
        before = {
            json.loads(row["budget"]): int(row["failed"]) + int(row["problems"])
            for row in csv.DictReader(file)
        }
    curve = Curve(values["run"]["method"], list(before), pools_of(values["run"]["pools"]))
    for line in lines:
        record = line.record
        rewards = [reply.reward for reply in line.replies if reply.failure is None]
        curve.add(
            Outcome(
                record["problem"],
                record["budget"],
                [],
                line.answer,
                record["metrics"],
                Cost(**record["cost"]),
                max(rewards, default=None),
            )
        )
    present = sum(line.record["budget"] == next(iter(before)) for line in lines)
    for _ in range(next(iter(before.values())) - present):
        curve.park()
    return curve
