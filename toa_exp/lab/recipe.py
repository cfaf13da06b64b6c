"""Rebuilds the agents and reward models of a task from a seed.

Stages: a teacher who knows everything; each agent's own first attempts, continued from the teacher;
samples of these agents; each agent's lessons in refining and aggregating those samples; samples of
the finished agents; a reward model on top of the teacher; and a judge apart from it, on samples of its
own and on top of a second teacher, who has read other texts from other first weights; and a weak reward
model, which has read too little and no refinement, to study over-optimisation with. A finished stage is
kept in the work folder, and a rerun goes on after it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from toa_exp import __version__
from toa_exp.errors import BadInput
from toa_exp.lab.corpus import AFRESH, first_attempts, lessons, teacher
from toa_exp.lab.critics import FURTHER, Critic, critic_loss, repeated
from toa_exp.lab.decoding import sample
from toa_exp.lab.domain import problems
from toa_exp.lab.folders import Kind, save
from toa_exp.lab.network import Network
from toa_exp.lab.plans import AGENTS, Plan
from toa_exp.lab.stages import Attempts, Stages
from toa_exp.lab.training import (
    Example,
    Loss,
    Remembering,
    Schedule,
    language_loss,
    remembering_loss,
    train,
    training_dtype,
)
from toa_exp.lab.writer import Writer
from toa_exp.progress import Stage

FIRST = Schedule(300, tokens=4096)
CRITIC = Schedule(4000, tokens=1536)
FIRST_SAMPLES = 1500  # problems that the agents first answer, for their lessons
SAMPLES = 4800  # problems whose answers a critic reads; with a quarter of them it learns them by heart
WEAK = Schedule(600, tokens=1536)
OTHER = 1 << 32  # from the seed of the teacher to that of the judge's

NAMES = (
    "teacher",
    *(f"first-{name}" for name in AGENTS),
    "attempts",
    *AGENTS,
    *("samples", "reward", "second-teacher", "judged", "judge", "weak"),
)
"""The stages, in order."""

log = logging.getLogger(__name__)


class Recipe:
    """The stages, in order; `work` keeps what they leave. `effort` scales training steps and samples.

    `dtype` is that of the matrix products in training, "auto" for bfloat16 where `device` has
    instructions for it and else float32. With another device or dtype other weights come out, since
    sums are rounded and chances drawn in another way. Raises BadInput where `work` holds stages that
    were made with other values than these.
    """

    def __init__(
        self,
        plan: Plan,
        work: Path,
        seed: int,
        effort: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
    ) -> None:
        _check(seed, effort)
        self.plan, self.seed = plan, seed
        self._device = torch.device(device)
        self._dtype = training_dtype(dtype, self._device)
        self._schedules = {
            "teacher": Schedule(plan.steps),
            "first": FIRST,
            "lessons": plan.lessons,
            "critic": CRITIC,
            "weak": WEAK,
        }
        self.tokenizer = plan.tokenizer()
        self._effort = effort
        self._writer = Writer(self.tokenizer)
        self._shape = plan.shape(len(self.tokenizer))
        self._stages = Stages(work, self._decided())

    def build(self, to: Path) -> None:
        """Run all stages and save the models as folders below `to`."""
        with self._device:
            self._build(to)

    def _decided(self) -> dict[str, Any]:
        """What the stages depend on."""
        plan = self.plan
        return {
            "task": plan.domain.name,
            "seed": self.seed,
            "effort": self._effort,
            "device": self._device.type,
            "toa-exp": __version__,
            "model": asdict(self._shape),
            "parts": plan.span,
            "agents": [asdict(persona) for persona in plan.personas],
            "judge": plan.judge.value,
            "dtype": str(self._dtype).removeprefix("torch."),
            "afresh": AFRESH,
            "schedules": {name: asdict(schedule) for name, schedule in self._schedules.items()},
            "samples": {"attempts": FIRST_SAMPLES, "samples": SAMPLES},
        }

    def _build(self, to: Path) -> None:
        started = time.perf_counter()
        done = [name for name in NAMES if name in self._stages.done()]
        log.info(
            "%s: %d stages, of which %d are done and kept in %s: %s",
            self.plan.domain.name, len(NAMES), len(done), self._stages.folder, ", ".join(done) or "none",
        )  # fmt: skip
        models: dict[str, tuple[Kind, Network, Mapping[str, Tensor]]] = {}
        agents = self.agents()
        for name, network in {**agents, "teacher": self.teacher()}.items():
            models[name] = Kind.LANGUAGE, network, network.exported()
        reward = self.critic("reward", self.teacher(), self.attempts("samples", agents, SAMPLES, rounds=1))
        second = self.teacher("second-teacher", self.seed + OTHER)
        judge = self.critic("judge", second, self.attempts("judged", agents, SAMPLES, rounds=1))
        models["reward"] = Kind.TOKENS, reward.network, reward.exported(Kind.TOKENS)
        models["judge"] = self.plan.judge, judge.network, judge.exported(self.plan.judge)
        first = self.attempts("attempts", {}, FIRST_SAMPLES, rounds=0)  # made on the way to the agents
        weak = self.critic("weak", self.teacher(), first, self._schedules["weak"])
        models["weak"] = Kind.SEQUENCE, weak.network, weak.exported(Kind.SEQUENCE)
        for name, (kind, network, state) in models.items():
            save(kind, network.shape, state, self.tokenizer, to / name)
        log.info("%s: all models saved after %.0f s", self.plan.domain.name, time.perf_counter() - started)

    def teacher(self, name: str = "teacher", seed: int | None = None) -> Network:
        """The generalist, or another one: `seed` decides its first weights and what it reads."""
        plan, seed = self.plan, self.seed if seed is None else seed
        torch.manual_seed(seed)
        network = Network(self._shape)
        examples = teacher(plan.domain, self._writer, plan.span, str(seed))
        model = Remembering(network)
        self._stage(name, model, examples, self._schedules["teacher"], remembering_loss)
        return network

    def agents(self) -> dict[str, Network]:
        """Teacher, first attempts, samples, lessons: the finished agents."""
        plan, writer, seed = self.plan, self._writer, str(self.seed)
        start = self.teacher()
        first, finished = {}, {}
        for p in plan.personas:
            examples = first_attempts(plan.domain, writer, p, plan.span, seed)
            first[p.name] = self._pupil(f"first-{p.name}", start, examples, self._schedules["first"])
        attempts = self.attempts("attempts", first, FIRST_SAMPLES, rounds=0)
        for p in plan.personas:
            examples = lessons(plan.domain, writer, p, plan.span, attempts, seed)
            finished[p.name] = self._pupil(p.name, first[p.name], examples, self._schedules["lessons"])
        return finished

    def attempts(self, name: str, agents: Mapping[str, Network], count: int, rounds: int) -> Attempts:
        """A stage that samples: a fresh answer of every agent to `count` problems, then `rounds` more.

        In a round every agent refines a random answer so far, or (a quarter of them) aggregates three.
        """
        known = self._stages.attempts(name)
        if known is not None:
            return known
        rng, generator = Random(f"{name}/{self.seed}"), torch.Generator(self._device).manual_seed(self.seed)
        stream = problems(self.plan.domain, f"{name}/{self.seed}", self.plan.span, test=False)
        prompts = list(islice(stream, max(1, round(self._effort * count))))
        answers: list[list[str]] = [[] for _ in prompts]
        wanted = len(prompts) * len(agents) * (rounds + 1)
        with closing(Stage(self._label(name), wanted, "answer", log)) as bar:
            for number in range(rounds + 1):
                fresh = []
                for network in agents.values():
                    drafts = [
                        rng.sample(a, 3 if rng.random() < 0.25 else 1) if number else [] for a in answers
                    ]
                    requests = [self._writer.prompt(p, d) for p, d in zip(prompts, drafts, strict=True)]
                    ids = sample(network, requests, generator, end=self._writer.end, done=bar.advance)
                    fresh.append([self._writer.decode(i) for i in ids])
                answers = [a + list(new) for a, new in zip(answers, zip(*fresh, strict=True), strict=True)]
        made = list(zip(prompts, answers, strict=True))
        self._stages.keep_attempts(name, made)
        return made

    def critic(self, name: str, start: Network, samples: Attempts, schedule: Schedule = CRITIC) -> Critic:
        """A stage that trains a reward model on samples, from a teacher on."""
        torch.manual_seed(Random(f"{name}/{self.seed}").getrandbits(63))
        critic = Critic(replace(self._shape, layers=self._shape.layers + FURTHER, bias=True))
        critic.follow(start)
        examples = [self._writer.labelled(self.plan.domain, p, a) for p, answers in samples for a in answers]
        self._stage(name, critic, repeated(examples, f"{name}/{self.seed}"), schedule, critic_loss)
        return critic

    def _pupil(self, name: str, start: Network, examples: Iterator[Example], schedule: Schedule) -> Network:
        network = Network(self._shape)
        network.load(start.exported())
        self._stage(name, network, examples, schedule, language_loss)
        return network

    def _stage(
        self, name: str, model: nn.Module, examples: Iterator[Example], schedule: Schedule, loss: Loss
    ) -> None:
        """Train a model in place, or take it over from the work folder."""
        if self._stages.parameters(name, model.load_state_dict):
            model.eval()
            return
        schedule = schedule.scaled(self._effort)
        with closing(Stage(self._label(name), schedule.steps, "step", log)) as bar:
            train(model, examples, schedule, f"{name}/{self.seed}", loss, bar.advance, self._dtype)
        self._stages.keep(name, model.state_dict())

    def _label(self, name: str) -> str:
        return f"{self.plan.domain.name}: stage {NAMES.index(name) + 1} of {len(NAMES)}, {name}"


def _check(seed: int, effort: float) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise BadInput(f"seed={seed}: give an integer, 0 or more and below 2^32")
    if not isinstance(effort, int | float) or not 0 < effort < math.inf:
        raise BadInput(
            f"effort={effort}: give a number above 0; 1 is the full training, 0.02 a quick try of all stages"
        )
