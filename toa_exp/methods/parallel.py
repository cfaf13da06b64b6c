"""Parallel ensemble: independent samples of every agent."""

from collections.abc import Sequence
from itertools import cycle, islice
from random import Random

from toa_exp.core import Problem, Request, Search, anytime


@anytime
def parallel(problem: Problem, agents: Sequence[str], budget: int, rng: Random) -> Search:
    """Ask the agents in turn, so that each has budget / K samples, the first ones one more."""
    yield [Request(agent) for agent in islice(cycle(agents), budget)]
