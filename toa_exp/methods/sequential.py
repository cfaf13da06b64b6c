"""Sequential refinement: chains in which every agent refines what the one before it wrote."""

from collections.abc import Sequence
from random import Random

from toa_exp.core import Problem, Request, Search, anytime


@anytime
def sequential(problem: Problem, agents: Sequence[str], budget: int, rng: Random) -> Search:
    """Run chains of all K agents, each in a fresh order; the last chain ends with the budget.

    The first agent of a chain answers afresh. After a failed reply the next agent refines the last
    usable one.
    """
    for start in range(0, budget, len(agents)):
        chain = rng.sample(agents, len(agents))
        draft = None
        for agent in chain[: budget - start]:
            request = Request(agent, "refine", (draft,)) if draft else Request(agent)
            (reply,) = yield [request]
            if reply.failure is None:
                draft = reply
