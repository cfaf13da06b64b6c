"""What the lab's models can do: skills of the agents, quality of the reward models."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch

from toa_exp import __version__
from toa_exp.core import Problem
from toa_exp.engines import loading
from toa_exp.errors import BadInput
from toa_exp.lab.decoding import sample
from toa_exp.lab.domain import Domain, Part, check_problems, grade, problems
from toa_exp.lab.folders import Kind, load
from toa_exp.lab.network import Network
from toa_exp.lab.personas import Persona
from toa_exp.lab.plans import AGENTS, PLANS
from toa_exp.lab.sums import check_sums
from toa_exp.lab.writer import Writer
from toa_exp.rewards.classifier import Classifier
from toa_exp.rewards.likelihood import Likelihood
from toa_exp.rewards.model import ModelReward
from toa_exp.rewards.process import Process

SEPARATOR = "[\n,]"
_ROUNDS = 4  # answers of each agent to a problem: two afresh, two over a draft
_BINS = 5  # of calibration


def card(
    task: str, weights: Path, parts: int, count: int, seed: int, temperature: float, top_p: float
) -> dict[str, Any]:
    """Measure the models in `weights` on `count` test problems of `parts` parts.

    `afresh` and `refining` hold shares by agent and skill, `knowledge` those of right values afresh
    outside of an agent's own skill, in what it knows and in what it has misconceptions of; `rewards` the
    quality of each reward model over all answers, `signature` how it was made. Raises BadInput for
    problems that there are not, for a temperature below 0 or a top_p outside of (0, 1], and where agents,
    the judge or the task's reward model are missing or damaged.
    """
    check_problems(parts, count)
    if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise BadInput(f"temperature={temperature}: give a number, 0 or more")
    if not isinstance(top_p, int | float) or not 0 < top_p <= 1:
        raise BadInput(f"top_p={top_p}: give a number above 0 and at most 1")
    plan = PLANS[task]
    for name in (*AGENTS, "judge", plan.reward):
        loading.check_model(str((weights / name).absolute()), "lab card")
    for folder in (path for path in weights.iterdir() if path.is_dir()):
        check_sums(folder)
    domain = plan.domain
    writer = Writer(loading.load_tokenizer(str(weights / AGENTS[0]), None, "lab card"))
    agents = {name: load(weights / name, "lab card") for name in AGENTS}
    prompts = list(islice(problems(domain, f"card/{seed}", parts, test=True), count))
    generator = torch.Generator().manual_seed(seed)
    rng = Random(f"card/{seed}")
    pool: list[list[str]] = [[] for _ in prompts]
    personas = {persona.name: persona for persona in plan.personas}
    made: dict[str, Any] = {"afresh": {}, "knowledge": {}, "refining": {}}
    for number in range(_ROUNDS):
        drafts = [[rng.choice(answers)] if number >= _ROUNDS // 2 else [] for answers in pool]
        for name, network in agents.items():
            answers = _draw(network, writer, prompts, drafts, generator, temperature, top_p)
            if number == 0:
                made["afresh"][name] = skills(domain, prompts, answers)
                made["knowledge"][name] = knowledge(personas[name], domain, prompts, answers)
            if number == _ROUNDS // 2:
                given = [draft for (draft,) in drafts]
                made["refining"][name] = repairs(domain, prompts, given, answers)
            for answer, known in zip(answers, pool, strict=True):
                known.append(answer)
    made["rewards"] = {
        name: _quality(reward, domain, prompts, pool) for name, reward in _rewards(task, weights)
    }
    made["signature"] = (
        f"lab:{task}|parts:{parts}|n:{count}|answers:{len(pool[0])} a problem|"
        f"temperature:{temperature:g}|top_p:{top_p:g}|seed:{seed}|toa-exp:{__version__}|torch:{torch.__version__}"
    )
    return made


def _rewards(task: str, weights: Path) -> Iterable[tuple[str, ModelReward]]:
    if (weights / "reward").is_dir():
        yield "process", Process(model=str(weights / "reward"), separator=SEPARATOR, max_batch=64)
    if (weights / "weak").is_dir():
        yield "weak", Classifier(model=str(weights / "weak"), max_batch=64)
    if PLANS[task].judge is Kind.TOKENS:
        yield "judge", Process(model=str(weights / "judge"), separator=SEPARATOR, max_batch=64)
    else:
        yield "judge", Classifier(model=str(weights / "judge"), max_batch=64)
    for name in ("teacher", *AGENTS):
        if (weights / name).is_dir():
            yield name, Likelihood(model=str(weights / name), separator=SEPARATOR, max_batch=64)


def _draw(
    network: Network,
    writer: Writer,
    prompts: Sequence[str],
    drafts: Sequence[Sequence[str]],
    generator: torch.Generator,
    temperature: float,
    top_p: float,
) -> list[str]:
    requests = [writer.prompt(p, d) for p, d in zip(prompts, drafts, strict=True)]
    drawn = sample(network, requests, generator, end=writer.end, temperature=temperature, top_p=top_p)
    return [writer.decode(ids) for ids in drawn]


def skills(domain: Domain, prompts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """The share of right values by skill, `accuracy` (all right) and `share` (right parts)."""
    seen: dict[str, list[float]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        for part, right in _parts(domain, prompt, answer):
            seen[part.table[0]].append(right)
        accuracy, share = grade(domain, prompt, answer)
        seen["accuracy"].append(accuracy)
        seen["share"].append(share)
    return _means(seen)


def knowledge(
    persona: Persona, domain: Domain, prompts: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """The share of right values outside of the own skill, in pieces that are `known` and `unknown`."""
    seen: dict[str, list[float]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        for part, right in _parts(domain, prompt, answer):
            if part.table[0] != persona.strong:
                seen["known" if persona.knows(part.table) else "unknown"].append(right)
    return _means(seen)


def _parts(domain: Domain, prompt: str, answer: str) -> Iterator[tuple[Part, float]]:
    """The parts of a problem, with 1.0 where the answer's value is right."""
    parts = domain.parse(prompt)
    for part, value in zip(parts, domain.values(parts, answer), strict=True):
        yield part, float(value is not None and part.accepts(value))


def _means(seen: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {key: sum(values) / len(values) for key, values in sorted(seen.items())}


def repairs(
    domain: Domain, prompts: Sequence[str], drafts: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """By skill: the share of wrong values of a draft that became right, and of right ones that stayed so."""
    seen: dict[str, list[float]] = defaultdict(list)
    for prompt, draft, answer in zip(prompts, drafts, answers, strict=True):
        parts = domain.parse(prompt)
        given, now = domain.values(parts, draft), domain.values(parts, answer)
        for part, before, after in zip(parts, given, now, strict=True):
            if before is not None:
                kind = "keeps" if part.accepts(before) else "repairs"
                seen[f"{kind} {part.table[0]}"].append(float(after is not None and part.accepts(after)))
    return _means(seen)


def auc(right: Sequence[float], rated: Sequence[float]) -> float | None:
    """The chance that a right answer is rated above a wrong one, a tie as half; None without both."""
    good = [r for r, ok in zip(rated, right, strict=True) if ok]
    bad = [r for r, ok in zip(rated, right, strict=True) if not ok]
    if not good or not bad:
        return None
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def _quality(
    reward: ModelReward, domain: Domain, prompts: Sequence[str], pool: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """AUC within a question (every part right against not), correlation and calibration."""
    pairs = [(prompt, text) for prompt, texts in zip(prompts, pool, strict=True) for text in texts]
    rated = asyncio.run(_score(reward, pairs))
    truth = [grade(domain, prompt, text) for prompt, text in pairs]
    size = len(pool[0])
    places = [slice(n * size, (n + 1) * size) for n in range(len(prompts))]
    areas = [auc([g[0] for g in truth[at]], rated[at]) for at in places]
    known = [area for area in areas if area is not None]
    shares = [share for _, share in truth]
    return {
        "auc": sum(known) / len(known) if known else None,
        "questions": len(known),
        "correlation": correlation(shares, rated),
        "calibration": calibration(rated, shares),
    }


def correlation(shares: Sequence[float], rated: Sequence[float]) -> float | None:
    """Pearson's r; None where either is the same for all answers."""
    if len(set(shares)) < 2 or len(set(rated)) < 2:
        return None
    return float(torch.corrcoef(torch.tensor([shares, rated]))[0, 1])


def calibration(rated: Sequence[float], shares: Sequence[float]) -> list[dict[str, float]]:
    """In fifths of the answers by score: the mean score, and the mean true share of right parts."""
    order = sorted(range(len(rated)), key=rated.__getitem__)
    edges = [round(n * len(order) / _BINS) for n in range(_BINS + 1)]
    fifths = [order[low:high] for low, high in pairwise(edges)]
    return [
        {
            "score": sum(rated[n] for n in fifth) / len(fifth),
            "share": sum(shares[n] for n in fifth) / len(fifth),
        }
        for fifth in fifths
    ]


async def _score(reward: ModelReward, pairs: Sequence[tuple[str, str]]) -> list[float]:
    try:
        asked = [reward.score(Problem(prompt, prompt), text) for prompt, text in pairs]
        return [score.reward for score in await asyncio.gather(*asked)]
    finally:
        await reward.close()


def shown(made: Mapping[str, Any]) -> str:
    """A card as text."""
    lines = []
    for kind in ("afresh", "knowledge", "refining"):
        for name, values in made[kind].items():
            lines.append(f"{kind:10}{name:6}" + "  ".join(f"{k} {v:.3f}" for k, v in values.items()))
    for name, quality in made["rewards"].items():
        related = "undefined" if quality["correlation"] is None else f"{quality['correlation']:.3f}"
        area = "no question with both" if quality["auc"] is None else f"{quality['auc']:.3f}"
        lines.append(
            f"{name:10}AUC within a question {area} ({quality['questions']} questions with right and wrong "
            f"answers), correlation with the share of right parts {related}"
        )
        fifths = "  ".join(f"{f['score']:.2f}: {f['share']:.2f}" for f in quality["calibration"])
        lines.append(f"{'':10}mean score: true share of right parts, by fifths of the answers  {fifths}")
    return "\n".join([*lines, made["signature"]])
