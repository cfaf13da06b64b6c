"""Random sampling: independent samples of one agent."""

from collections.abc import Sequence
from random import Random

from toa_exp.core import Problem, Request, Search, anytime


@anytime
def random(
    problem: Problem,
    agents: Sequence[str],
    budget: int,
    rng: Random,
    *,
    agent: str | None = None,
) -> Search:
    """Ask one agent `budget` times. `agent`: its name; None is the ensemble's first."""
    yield [Request(agent or agents[0])] * budget
