"""Look whether a run would work: toa-exp doctor <overrides of toa-exp run>.

Versions, GPUs, the store, memory, endpoints, keys, chat templates, and one tiny answer of each agent and
score of the reward, each on a line of its own, OK, WARN or FAIL, with what to do. No sample is stored.
Exit status 0 where nothing fails, 1 otherwise, 2 for a configuration that cannot be read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import NoReturn

from omegaconf import DictConfig

from toa_exp.app import launch
from toa_exp.budgets import Budgets
from toa_exp.build import build, build_function, call, is_kind, plain
from toa_exp.core import Problem
from toa_exp.doctor.agents import check_answer, check_endpoints, check_flops, check_template
from toa_exp.doctor.findings import Findings
from toa_exp.doctor.machine import check_gpus, check_versions
from toa_exp.doctor.memory import Load, check_memory, check_plan, members_of, what_runs
from toa_exp.doctor.store import check_store
from toa_exp.draws import Message
from toa_exp.engines.base import Engine
from toa_exp.engines.openai import OpenAI
from toa_exp.engines.replay import Replay
from toa_exp.engines.transformers import Transformers
from toa_exp.engines.vllm import Vllm
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import BadInput, ToaError
from toa_exp.job import check_parts, engine_node, engine_of
from toa_exp.rewards.base import Reward
from toa_exp.rewards.vllm_classifier import VllmClassifier
from toa_exp.runners.ray import Ray
from toa_exp.storage import is_url, path_of
from toa_exp.tasks.base import Task

_TEMPLATES = {"direct": 0, "refine": 1, "aggregate": 2}  # with how many drafts
_STAND_IN = Problem("doctor", "What is 2 + 2?", "4")


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    findings = Findings(lambda line: print(line, flush=True))

    def examine(config: DictConfig) -> None:
        asyncio.run(_examine(config, findings))

    status = launch(examine, "doctor", arguments, "doctor")
    return max(status, int(findings.failed > 0))


async def _examine(config: DictConfig, findings: Findings) -> None:
    """All checks, the cheap ones first; one that fails keeps no other from being made."""
    check_parts(config)
    agents = agents_of(plain(config.ensemble))
    replayed = is_kind(config.engine, Replay)  # whatever engine an agent names
    engines = {n: config.engine if replayed else engine_node(config, agent) for n, agent in agents.items()}
    store = path_of(config.store)
    call(Budgets.of, plain(config.budget), "budget")
    build_function(config.method, "method")
    build_function(config.selection, "selection")
    check_versions(findings, _extras(config, engines))
    check_gpus(findings)
    check_store(findings, store)
    task, problem, chats = _task(config, findings)
    spread = is_kind(config.runner, Ray)
    if spread:
        with findings.checking("runner"):
            build(config.runner, "runner")
            findings.warn(
                "runner",
                "the machines of the Ray cluster are not looked at, and models that they load are not asked; "
                "a run says at its start whether there is room. On one of them: toa-exp doctor runner=local",
            )
    else:
        await _memory(config, findings, agents, engines, task)
    text: str | None = None
    for name, agent in agents.items():
        check_flops(findings, agent)
        usable = await _usable(findings, agent, engines[name], chats, problem)
        if usable and not (spread and _loads(engines[name], agent)):
            sample = await check_answer(findings, agent, engines[name], chats["direct"], problem)
            if sample is not None and text is None:
                text = sample.text
    loads = config.reward.get("model") or config.reward.get("members")
    if not (spread and loads) or "base_url" in config.reward:
        await _reward(config, findings, task, problem, text)
    if task is not None:
        await task.close()


def _extras(config: DictConfig, engines: Mapping[str, DictConfig]) -> set[str]:
    """The optional packages that the configuration uses."""
    parts = [*engines.values(), *map(what_runs, members_of(config.reward).values())]
    vllm = any(is_kind(part, Vllm, VllmClassifier) for part in parts)
    used = {"vllm"} if vllm else set()
    used |= {"ray"} if is_kind(config.runner, Ray) else set()
    with contextlib.suppress(BadInput):  # told when the store is looked at
        used |= {"psycopg"} if is_url(path_of(config.store)) else set()
    return used


def _loads(engine: DictConfig, agent: Agent) -> bool:
    """Whether asking an agent loads its model here."""
    return is_kind(engine, Transformers, Vllm) and not agent.simulated


async def _memory(
    config: DictConfig,
    findings: Findings,
    agents: Mapping[str, Agent],
    engines: Mapping[str, DictConfig],
    task: Task | None,
) -> None:
    """Whether what is loaded in this process fits: by a run's plan where it makes one, else by weight."""
    parts: list[Engine | Reward] = []
    local = {name: agent for name, agent in agents.items() if _loads(engines[name], agent)}
    with findings.checking("memory"):
        for kind in (Vllm, Transformers):
            members = {n: agent for n, agent in local.items() if is_kind(engines[n], kind)}
            # What keeps the transformers engine from being built is told when its agents are asked.
            told_later = [BadInput] if kind is Transformers else []
            with contextlib.suppress(*told_later):
                if members:
                    engine = engine_of(config, members)
                    parts += getattr(engine, "engines", [engine])
        with findings.checking("reward"):
            parts.append(build(config.reward, "reward", task=task))
        try:
            plan = check_plan(findings, parts)
        finally:
            for part in parts:
                await part.close()
        seats = {} if plan is None else plan.seats
        # A seat has the name of the first agent of its model.
        seated = {(agent.model, agent.revision) for name, agent in local.items() if name in seats}
        models = [
            Load.of_agent(agent, engines[name])
            for name, agent in local.items()
            if (agent.model, agent.revision) not in seated
        ]
        models += [load for load in Load.of_reward(config.reward) if load.seat not in seats]
        check_memory(findings, models)


def _task(config: DictConfig, findings: Findings) -> tuple[Task | None, Problem, Mapping[str, list[Message]]]:
    """The task, its longest problem, and that problem's messages by template."""
    try:
        task: Task = build(config.task, "task")
        if not task.count():
            raise BadInput("the task has no problems")
        problem = max(task.problems(), key=lambda one: len(one.prompt))
        chats = {name: task.render(problem, name, ["4"] * drafts) for name, drafts in _TEMPLATES.items()}
        findings.ok(
            "task", f"{task.count()} problems; renders {', '.join(chats)} for the longest, {problem.id!r}"
        )
        return task, problem, chats
    except ToaError as error:
        findings.fail("task", str(error))
        return None, _STAND_IN, {"direct": [{"role": "user", "content": _STAND_IN.prompt}]}


class _Unusable:
    """Stands for a task that cannot be built."""

    def __getattr__(self, name: str) -> NoReturn:
        raise BadInput("it reads the task, which cannot be used (see above)")


async def _usable(
    findings: Findings, agent: Agent, engine: DictConfig, chats: Mapping[str, list[Message]], problem: Problem
) -> bool:
    """Whether it makes sense to ask an agent for an answer."""
    if is_kind(engine, Replay):
        findings.ok(f"agent {agent.name!r}", "is asked for nothing: engine=replay takes what the store has")
        return False
    if is_kind(engine, OpenAI):
        return await check_endpoints(findings, agent, engine)
    if _loads(engine, agent):
        return check_template(findings, agent, chats, problem)
    return True


async def _reward(
    config: DictConfig, findings: Findings, task: Task | None, problem: Problem, text: str | None
) -> None:
    """One score, of what an agent answered."""
    with findings.checking("reward"):
        reward: Reward = build(config.reward, "reward", task=task or _Unusable())
        try:
            score = await reward.score(problem, text or "4")
        finally:
            await reward.close()
        findings.ok("reward", f"scored an answer {score.reward:.4g}, reading {score.tokens} tokens")
