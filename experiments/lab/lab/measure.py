"""Measures the lab with a light stand-in for the runner: accuracy against FLOPs, paired intervals.

    python -m lab.measure math --weights weights/math --parts 6 --problems 400 --seed 1 --to results.json

A development tool: the numbers that count come from the project's own runner.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lab.domain import Domain, grade, problems
from lab.folders import load
from lab.network import Network
from lab.playground import Job, Playground, Score, Trail
from lab.rewards import likelihoods, scores
from lab.rewards import score as as_score
from lab.tasks import PLANS, Plan
from lab.writer import Writer
from toa_exp.core import Search
from toa_exp.methods.moa import moa
from toa_exp.methods.parallel import parallel
from toa_exp.methods.prs import prs
from toa_exp.methods.random import random
from toa_exp.methods.sequential import sequential
from toa_exp.methods.toa import toa

Row = dict[str, Any]
"""method, budget, and per problem: accuracy, share, flops, tokens."""


def model_reward(network: Network, writer: Writer) -> Score:
    """Scores by a reward model."""

    def rate(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return scores(network, [writer.dialogue(p, a) for p, a in pairs])

    return rate


def likelihood_reward(network: Network, writer: Writer) -> Score:
    """Scores by the likelihood of the answer's steps under a language model."""

    def rate(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return likelihoods(network, [writer.example(p, (), a) for p, a in pairs], writer.breaks())

    return rate


def exact_reward(domain: Domain) -> Score:
    """The oracle: the score of the true share of right parts."""
    return lambda pairs: [as_score(grade(domain, p, a)[1]) for p, a in pairs]


def row(domain: Domain, label: str, budget: int, trails: Sequence[Trail], prompts: Sequence[str]) -> Row:
    """The outcomes of a run, read off at a budget."""
    answers = [trail.answer(budget) for trail in trails]
    grades = [grade(domain, p, text) for p, (text, _, _) in zip(prompts, answers, strict=True)]
    return {
        "method": label,
        "budget": budget,
        "accuracy": [g[0] for g in grades],
        "share": [round(g[1], 4) for g in grades],
        "flops": [f for _, f, _ in answers],
        "tokens": [t for _, _, t in answers],
    }


def study(
    playground: Playground,
    domain: Domain,
    budgets: Sequence[int],
    methods: Sequence[str],
    settings: dict[str, dict[str, Any]],
) -> list[Row]:
    """The named methods at all budgets; those marked `anytime` run once, to twice the largest."""
    jobs: list[Job] = []
    shown: list[tuple[str, list[int]]] = []
    names = list(playground.agents)
    variants: dict[str, list[tuple[str, Callable[..., Search], dict[str, Any]]]] = {
        "parallel": [("parallel", parallel, {})],
        "random": [(f"random {name}", random, {"agent": name}) for name in names],
        "sequential": [("sequential", sequential, {})],
        "moa": [("moa", moa, {})],
        "prs": [("prs ensemble", prs, {"ensemble": True})],
        "prs-single": [(f"prs {name}", prs, {"agent": name}) for name in names],
        "toa": [("toa", toa, {})],
    }
    for label, method, chosen in (variant for name in methods for variant in variants[name]):
        extra = {**chosen, **settings.get(label, {})}
        anytime = getattr(method, "anytime", False)
        longest = 2 * budgets[-1]
        for budget in [longest] if anytime else budgets:
            jobs.append((method, budget, extra))
            shown.append((label, [*budgets, longest] if anytime else [budget]))
    return [
        row(domain, label, budget, trails, playground.prompts)
        for (label, read), trails in zip(shown, playground.run(jobs), strict=True)
        for budget in read
    ]


METHODS = ("parallel", "prs", "toa", "sequential", "moa", "random", "prs-single")


def show(entry: Row) -> None:
    """One line of a table on standard output."""
    count = len(entry["accuracy"])
    mean = {key: sum(entry[key]) / count for key in ("accuracy", "share", "flops", "tokens")}
    print(
        f"{entry['method']:14s} N={entry['budget']:<3d} acc {mean['accuracy']:.3f} share {mean['share']:.3f} "
        f"{mean['tokens'] / 1000:6.2f}k tokens {mean['flops'] / 1e9:6.2f} GFLOP",
        flush=True,
    )


def playground_of(
    plan: Plan, weights: Path, reward: str, parts: int, count: int, seed: int, temperature: float
) -> Playground:
    """Agents and reward of a weights folder, on test problems of one size."""
    writer = Writer(plan.tokenizer())
    names = sorted(p.name for p in weights.iterdir() if (p / "generation_config.json").exists())
    agents = {name: load(weights / name) for name in names if name != "teacher"}
    if reward == "exact":
        rate = exact_reward(plan.domain)
    elif (weights / reward / "generation_config.json").exists():
        rate = likelihood_reward(load(weights / reward), writer)
    else:
        rate = model_reward(load(weights / reward), writer)
    prompts = list(islice(problems(plan.domain, f"measure/{seed}", parts, test=True), count))
    return Playground(agents, writer, rate, prompts, temperature=temperature, seed=seed)


def main() -> None:
    """Run the study and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(PLANS))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--reward", default="reward")
    parser.add_argument("--parts", type=int)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--toa", type=json.loads, default={"alpha": 0.05, "tau": 1.0, "width": 0.17})
    a = parser.parse_args()
    torch.set_num_threads(1)
    start = time.time()
    plan = PLANS[a.task]
    parts = a.parts or plan.parts
    playground = playground_of(plan, a.weights, a.reward, parts, a.problems, a.seed, a.temperature)
    rows = study(playground, plan.domain, a.budgets, a.methods, {"toa": a.toa})
    for entry in rows:
        show(entry)
    a.to.write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(a).items()}, "rows": rows}))
    print(f"{len(playground.draws)} draws, {time.time() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
