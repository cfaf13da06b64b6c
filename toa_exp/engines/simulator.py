"""Parametric agents: no model, but skills, gains from earlier drafts, and lengths.

Every answer has a latent quality, and is right where that is above 0. A fresh answer's quality is

    skill - difficulty of the problem + affinity of agent and problem + spread x noise,

with standard normal difficulty and noise, and a normal affinity of the agent's own size, so that
agents differ in what they can solve. A refinement of a draft of quality q has quality

    q + (1 - copy) x (fresh quality - q) + refine_gain,

and an aggregation is a refinement, with `aggregate_gain`, of the drafts' mean moved by `focus`
towards the best of them. The text states the quality, so that a simulated reward and later
refinements can read it. All of it is a pure function of the draw: chance is read off digests.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from toa_exp.build import call
from toa_exp.core import Problem, Usage
from toa_exp.draws import Draw, Sample, encode
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput

_QUALITY = re.compile(r"^Simulated quality: (-?\d+\.\d+)$", re.M)
_WRONG_ANSWERS = 8
_CHARACTERS_PER_TOKEN = 4
_NUMBERS = struct.Struct("<4Q")
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Profile:
    """What a simulated agent is; see the module for the model.

    `tokens` is the median completion length and `tokens_spread` the standard deviation of its
    logarithm. `tokens_per_second` gives the seconds of a sample. `failure_rate` is the share of
    draws that end as a typed failure.
    """

    skill: float = 0.0
    affinity: float = 0.5
    spread: float = 1.0
    refine_gain: float = 0.2
    aggregate_gain: float = 0.2
    copy: float = 0.6
    focus: float = 0.5
    tokens: float = 300.0
    tokens_spread: float = 0.4
    tokens_per_second: float = 50.0
    failure_rate: float = 0.0


class Simulator:
    """Engine of simulated agents, whose `options` are the fields of `Profile`."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self.agents = agents
        self._profiles = {name: _profile(agent) for name, agent in agents.items()}

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw, the same whenever and wherever it is drawn."""
        agent = draw.request.agent
        profile = self._profiles[agent]
        failing, better, longer, wronger = _chances(draw.key)
        prompt_tokens = (
            sum([len(message["content"]) for message in draw.messages]) // _CHARACTERS_PER_TOKEN + 1
        )
        if failing < profile.failure_rate:
            usage = Usage(prompt_tokens, 0)
            return Sample("", usage, prompt_tokens / profile.tokens_per_second, "simulated")
        quality = _quality(draw, profile, _NORMAL.inv_cdf(better))
        length = profile.tokens * math.exp(profile.tokens_spread * _NORMAL.inv_cdf(longer))
        completion_tokens = min(int(length) + 1, self.agents[agent].sampling["max_tokens"])
        text = f"Simulated quality: {quality:.6f}\nAnswer: {_answer(draw.problem, quality, wronger)}"
        seconds = completion_tokens / profile.tokens_per_second
        return Sample(text, Usage(prompt_tokens, completion_tokens), seconds)

    async def close(self) -> None:
        """Nothing is held."""


def quality_of(text: str) -> float:
    """The latent quality that a simulated text states."""
    match = _QUALITY.search(text)
    if match is None:
        raise BadInput(
            f"no simulated answer: {text[:60]!r}. The simulated reward and simulated refinement need "
            f"simulated agents; choose another reward=, or ensemble=simulated"
        )
    return float(match[1])


def _profile(agent: Agent) -> Profile:
    if not agent.simulated:
        raise BadInput(
            f"agent {agent.name!r} has model {agent.model!r}, which engine=simulator cannot run; "
            f"choose engine=transformers, or model: simulated"
        )
    return call(Profile, agent.options, f"ensemble.agents.{agent.name}.options")


def _chances(source: bytes) -> list[float]:
    """Four uniform, independent numbers, above 0 and below 1, that the source alone decides."""
    numbers = _NUMBERS.unpack(hashlib.blake2b(source, digest_size=_NUMBERS.size).digest())
    return [((number >> 12) + 0.5) / 2**52 for number in numbers]


def _quality(draw: Draw, profile: Profile, noise: float) -> float:
    difficulty = _difficulty(draw.problem.id)
    affinity = _affinity(draw.agent, draw.problem.id)
    fresh = profile.skill - difficulty + profile.affinity * affinity
    fresh += profile.spread * noise
    drafts = [quality_of(parent.text) for parent in draw.request.parents]
    if not drafts:
        return fresh
    mean = sum(drafts) / len(drafts)
    start = mean + profile.focus * (max(drafts) - mean)
    gain = profile.refine_gain if len(drafts) == 1 else profile.aggregate_gain
    return start + (1.0 - profile.copy) * (fresh - start) + gain


@functools.lru_cache(maxsize=1024)
def _difficulty(problem: str) -> float:
    return _NORMAL.inv_cdf(_chances(encode(f"difficulty/{problem}"))[0])


@functools.lru_cache(maxsize=4096)
def _affinity(agent: bytes, problem: str) -> float:
    return _NORMAL.inv_cdf(_chances(encode(f"affinity/{agent.hex()}/{problem}"))[0])


def _answer(problem: Problem, quality: float, chance: float) -> Any:
    """The reference where the quality is above 0, else one of a few wrong answers, near ones first."""
    if quality > 0:
        return problem.reference if problem.reference is not None else "right"
    off = min(int(-2.0 * math.log(chance)) + 1, _WRONG_ANSWERS)  # exponential, of mean 2
    try:
        return int(str(problem.reference).replace(",", "")) + off
    except ValueError:
        return f"wrong answer {off}"
