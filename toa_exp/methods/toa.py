"""TOA: tree search over which agent samples next and which response it refines."""

from collections.abc import Sequence
from fractions import Fraction
from random import Random

from toa_exp.core import Problem, Request, Search
from toa_exp.tree import Tree


def toa(
    problem: Problem,
    agents: Sequence[str],
    budget: int,
    rng: Random,
    *,
    alpha: float = 0.01,
    tau: float = 0.1,
    width: float | None = None,
) -> Search:
    """Monte Carlo tree search with one reward call a simulation (arXiv 2412.17061).

    `alpha` weighs exploration and `tau` is the reward's scale. `width` is how many responses a
    layer holds before the search goes below it: a number, or below 1 a share of the budget, or
    None, a third of the budget rounded down.
    """
    if tau <= 0:
        raise ValueError(f"tau={tau}: the reward's scale is above 0")
    share = Fraction(1, 3) if width is None else Fraction(width)
    tree = Tree(agents, alpha=alpha, tau=tau, width=int(share * budget if share < 1 else share))
    for _ in range(budget):
        arm = tree.select()
        request = Request(arm.agent, "refine", (arm.draft,)) if arm.draft else Request(arm.agent)
        (reply,) = yield [request]
        tree.record(reply, reply.reward)
