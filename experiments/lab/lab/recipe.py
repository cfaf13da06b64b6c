"""Rebuilds the agents and reward models of the a task from a seed.

    python -m lab.recipe math --to weights/math --work build/math

Stages: a teacher who knows everything; each agent's own first attempts, continued from the teacher;
samples of these agents; each agent's lessons in refining and aggregating those samples; samples of
the finished agents; reward models on these. A finished stage is kept in the work folder, and a
rerun goes on after it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from lab.corpus import first_attempts, lessons, teacher
from lab.decoding import sample
from lab.domain import problems
from lab.folders import save
from lab.network import Network, Shape
from lab.rewards import Critic, critic_loss, outcome_loss, repeated
from lab.tasks import PLANS, Plan
from lab.training import Example, Schedule, train
from lab.writer import Writer

TEACHER = Schedule(1800)
FIRST = Schedule(90, tokens=4096, matrix_rate=0.01, other_rate=1e-3, decay=0.8)
LESSONS = Schedule(320, tokens=4096, matrix_rate=0.01, other_rate=1e-3, decay=0.8)
GOOD = Schedule(2500, tokens=1024)
JUDGE = Schedule(1500, tokens=1024)
WEAK = Schedule(300, tokens=4096)


def log(line: str) -> None:
    """Progress, on standard error."""
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


class Recipe:
    """The stages, in order; `work` keeps what they leave."""

    def __init__(self, plan: Plan, work: Path, seed: int) -> None:
        self.plan, self.work, self.seed = plan, work, seed
        self.tokenizer = plan.tokenizer()
        self.writer = Writer(self.tokenizer)
        self.shape = Shape(len(self.tokenizer))
        work.mkdir(parents=True, exist_ok=True)

    def network(
        self, name: str, start: str | None, examples: Iterator[Example], schedule: Schedule
    ) -> Network:
        """A stage that trains a language model, continued from stage `start`."""
        torch.manual_seed(self.seed)
        network, path = Network(self.shape), self.work / f"{name}.safetensors"
        if path.exists():
            network.load(load_file(path))
            return network.eval()
        if start is not None:
            network.load(load_file(self.work / f"{start}.safetensors"))
        train(network, examples, schedule.scaled(self.plan.effort), f"{name}/{self.seed}", report=log)
        save_file({key: value.clone() for key, value in network.exported().items()}, path)
        return network

    def attempts(
        self, name: str, agents: Mapping[str, Network], count: int, rounds: int
    ) -> list[tuple[str, list[str]]]:
        """A stage that samples: a fresh answer of every agent to `count` problems, then `rounds` more.

        In a round every agent refines a random answer so far, or (a quarter of them) aggregates three.
        """
        path = self.work / f"{name}.json"
        if path.exists():
            return [(prompt, answers) for prompt, answers in json.loads(path.read_text())]
        rng, generator = Random(f"{name}/{self.seed}"), torch.Generator().manual_seed(self.seed)
        stream = problems(self.plan.domain, f"{name}/{self.seed}", self.plan.span, test=False)
        prompts = list(islice(stream, count))
        answers: list[list[str]] = [[] for _ in prompts]
        for number in range(rounds + 1):
            fresh = []
            for network in agents.values():
                drafts = [rng.sample(a, 3 if rng.random() < 0.25 else 1) if number else [] for a in answers]
                requests = [self.writer.prompt(p, d) for p, d in zip(prompts, drafts, strict=True)]
                ids = sample(network, requests, generator, end=self.writer.end)
                fresh.append([self.writer.decode(i) for i in ids])
            answers = [a + list(new) for a, new in zip(answers, zip(*fresh, strict=True), strict=True)]
            log(f"{name}: round {number} sampled")
        path.write_text(json.dumps(list(zip(prompts, answers, strict=True))))
        return list(zip(prompts, answers, strict=True))

    def critic(
        self,
        name: str,
        shape: Shape,
        samples: list[tuple[str, list[str]]],
        schedule: Schedule,
        *,
        taught: bool,
        outcomes: bool = False,
    ) -> Network:
        """A stage that trains a reward model; `taught` starts from the teacher."""
        torch.manual_seed(self.seed)
        critic, path = Critic(shape, tap=max(0, shape.layers - 2)), self.work / f"{name}.safetensors"
        if path.exists():
            critic.network.load(load_file(path))
            return critic.network.eval()
        if taught:
            critic.network.load(load_file(self.work / "teacher.safetensors"))
            critic.freeze(self.shape.layers)
        examples = [self.writer.labelled(self.plan.domain, p, a) for p, answers in samples for a in answers]
        loss = outcome_loss if outcomes else critic_loss
        train(
            critic,
            repeated(examples, f"{name}/{self.seed}"),
            schedule.scaled(self.plan.effort),
            f"{name}/{self.seed}",
            loss,
            log,
        )
        save_file({key: value.clone() for key, value in critic.network.exported().items()}, path)
        return critic.network

    def agents(self) -> dict[str, Network]:
        """Teacher, first attempts, samples, lessons: the finished agents."""
        plan, writer, seed = self.plan, self.writer, str(self.seed)
        self.network("teacher", None, teacher(plan.domain, writer, plan.span, seed), TEACHER)
        first, finished = {}, {}
        for p in plan.personas:
            examples = first_attempts(plan.domain, writer, p, plan.span, seed)
            first[p.name] = self.network(f"first-{p.name}", "teacher", examples, FIRST)
        attempts = self.attempts("attempts", first, 1500, rounds=0)
        for p in plan.personas:
            examples = lessons(plan.domain, writer, p, plan.span, attempts, seed)
            finished[p.name] = self.network(p.name, f"first-{p.name}", examples, LESSONS)
        return finished

    def critics(self, agents: Mapping[str, Network]) -> dict[str, Network]:
        """The good reward, the weak one and the judge."""
        large = Shape(len(self.tokenizer), layers=7, bias=True)
        small = Shape(len(self.tokenizer), 48, 2, 64, 2, 24)
        samples = self.attempts("samples", agents, 1200, rounds=1)
        other = self.attempts("judged", agents, 500, rounds=1)
        return {
            "reward": self.critic("reward", large, samples, GOOD, taught=True),
            "weak": self.critic("weak", small, samples[:800], WEAK, taught=False, outcomes=True),
            "judge": self.critic("judge", large, other, JUDGE, taught=True),
        }


def main() -> None:
    """Build and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(PLANS))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(PLANS[arguments.task], arguments.work, arguments.seed)
    agents = recipe.agents()
    for name, network in agents.items():
        save(network, recipe.tokenizer, arguments.to / name)
    generalist = recipe.network("teacher", None, iter(()), TEACHER)
    save(generalist, recipe.tokenizer, arguments.to / "teacher")
    for name, network in recipe.critics(agents).items():
        save(network, recipe.tokenizer, arguments.to / name)


if __name__ == "__main__":
    main()
