"""PRS: parallel sampling, then refinement of the best sample, with one agent or several."""

from collections.abc import Sequence
from itertools import cycle, islice
from random import Random

from toa_exp.core import Problem, Request, Search, best


def prs(
    problem: Problem,
    agents: Sequence[str],
    budget: int,
    rng: Random,
    *,
    agent: str | None = None,
    ensemble: bool = False,
) -> Search:
    """Answer afresh with half of the budget (rounded down), then refine the best of those.

    `agent`: who samples; None is the ensemble's first. `ensemble`: all agents sample in turn
    instead. Where every answer failed the second half answers afresh too.
    """
    names = list(agents) if ensemble else [agent or agents[0]]
    first = max(1, budget // 2)
    answers = yield [Request(name) for name in islice(cycle(names), first)]
    draft = best(answers)
    second = budget - first
    if second:
        template, parents = ("refine", (draft,)) if draft else ("direct", ())
        yield [Request(name, template, parents) for name in islice(cycle(names), second)]
