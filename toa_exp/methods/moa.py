"""Mixture of agents: layers in which every agent aggregates the layer before."""

from collections.abc import Sequence
from random import Random

from toa_exp.core import Problem, Reply, Request, Search, anytime, usable


@anytime
def moa(
    problem: Problem,
    agents: Sequence[str],
    budget: int,
    rng: Random,
    *,
    layers: int = 3,
    num_aggregation: int | None = None,
) -> Search:
    """Run chains of `layers` layers of all K agents; the last chain ends with the budget.

    The first layer answers afresh. After it every agent sees the usable replies of the layer
    before, or a random `num_aggregation` of them. Where none is usable it answers afresh.
    """
    if layers < 1:
        raise ValueError(f"layers={layers}: a chain has 1 layer or more")
    if num_aggregation is not None and num_aggregation < 1:
        raise ValueError(f"num_aggregation={num_aggregation}: aggregate 1 reply or more, or null")

    def request(agent: str, drafts: list[Reply]) -> Request:
        if num_aggregation is not None and num_aggregation < len(drafts):
            drafts = rng.sample(drafts, num_aggregation)
        return Request(agent, "aggregate", tuple(drafts)) if drafts else Request(agent)

    while budget > 0:
        drafts: list[Reply] = []
        for _ in range(layers):
            layer = agents[:budget]
            if layer:
                drafts = usable((yield [request(agent, drafts) for agent in layer]))
            budget -= len(layer)
