"""What the lab's models can do: skills of the agents, quality of the reward models.

python -m lab.card math --weights weights/math --problems 200
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import torch

from lab.decoding import sample
from lab.domain import Domain, grade, problems
from lab.folders import load
from lab.network import Network
from lab.rewards import scores
from lab.tasks import PLANS
from lab.writer import Writer


def draw(
    agents: Mapping[str, Network],
    writer: Writer,
    prompts: Sequence[str],
    drafts: Sequence[Sequence[str]],
    temperature: float,
    seed: int,
) -> dict[str, list[str]]:
    """Each agent's answer to every prompt, given drafts (none: afresh)."""
    generator = torch.Generator().manual_seed(seed)
    requests = [writer.prompt(p, d) for p, d in zip(prompts, drafts, strict=True)]
    return {
        name: [
            writer.decode(ids)
            for ids in sample(network, requests, generator, end=writer.end, temperature=temperature)
        ]
        for name, network in agents.items()
    }


def skills(domain: Domain, prompts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """The share of right values by skill, `accuracy` (all right) and `share` (right parts)."""
    seen: dict[str, list[float]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        parts = domain.parse(prompt)
        for part, value in zip(parts, domain.values(parts, answer), strict=True):
            seen[part.table[0]].append(float(value is not None and part.accepts(value)))
        right, share = grade(domain, prompt, answer)
        seen["accuracy"].append(right)
        seen["share"].append(share)
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
    return {key: sum(values) / len(values) for key, values in sorted(seen.items())}


def auc(right: Sequence[float], rated: Sequence[float]) -> float | None:
    """The chance that a right answer is rated above a wrong one, a tie as half; None without both."""
    good = [r for r, ok in zip(rated, right, strict=True) if ok]
    bad = [r for r, ok in zip(rated, right, strict=True) if not ok]
    if not good or not bad:
        return None
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's."""
    x, y = torch.tensor(first), torch.tensor(second)
    return float(torch.corrcoef(torch.stack((x, y)))[0, 1])


def main() -> None:
    """Print the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(PLANS))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--parts", type=int)
    parser.add_argument("--temperature", type=float, default=1.0)
    a = parser.parse_args()
    torch.set_num_threads(1)
    plan = PLANS[a.task]
    writer = Writer(plan.tokenizer())
    agents = {p.name: load(a.weights / p.name) for p in plan.personas}
    prompts = list(islice(problems(plan.domain, "card", a.parts or plan.parts, test=True), a.problems))
    none: list[list[str]] = [[] for _ in prompts]
    pools = [draw(agents, writer, prompts, none, a.temperature, seed) for seed in (0, 1)]
    for name in agents:
        print("afresh", name, _shown(skills(plan.domain, prompts, pools[0][name])))
    rng = Random(0)
    for seed in (2, 3):
        drafts = [
            rng.choice([pool[name][n] for pool in pools for name in agents]) for n in range(len(prompts))
        ]
        given = [[draft] for draft in drafts]
        pools.append(draw(agents, writer, prompts, given, a.temperature, seed))
        if seed == 2:
            for name in agents:
                print("refine", name, _shown(repairs(plan.domain, prompts, drafts, pools[-1][name])))
    texts = [[pool[name][n] for pool in pools for name in agents] for n in range(len(prompts))]
    truth = [[grade(plan.domain, p, t) for t in ts] for p, ts in zip(prompts, texts, strict=True)]
    for name in ("reward", "weak", "judge"):
        if not (a.weights / name).exists():
            continue
        network = load(a.weights / name)
        flat = scores(
            network, [writer.dialogue(p, t) for p, ts in zip(prompts, texts, strict=True) for t in ts]
        )
        width = len(texts[0])
        rated = [flat[n * width : (n + 1) * width] for n in range(len(prompts))]
        areas = [auc([g[0] for g in gs], rs) for gs, rs in zip(truth, rated, strict=True)]
        known = [area for area in areas if area is not None]
        shares = [g[1] for gs in truth for g in gs]
        print(
            f"{name}: AUC within a question {sum(known) / max(1, len(known)):.3f} (n={len(known)}), "
            f"correlation with the share of right parts {correlation(shares, flat):.3f}"
        )


def _shown(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.3f}" for key, value in values.items())


if __name__ == "__main__":
    main()
