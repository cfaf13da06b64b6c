"""The search tree of TOA, kept incrementally: one step costs O(depth x agents), whatever N is.

The tree alternates layers. The root and every response have agent nodes as children ("arms"); an
agent node's children are responses. The rules are those of the paper's own runs (arXiv 2412.17061),
where simulation is one call of the reward model and there is no rollout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_SATURATED = -700.0  # exp(700) still is a float; below, the logistic function is 0 to any precision


def normalise(reward: float, tau: float) -> float:
    """The logistic function of reward / tau, in [0, 1]; -inf gives 0."""
    scaled = reward / tau
    return 0.0 if scaled < _SATURATED else 1.0 / (1.0 + math.exp(-scaled))


class Response:
    """A response in the tree, or its root (`reply` None): what arms can refine.

    `value` is its normalised reward. `arms` is empty until the search first enters the node.
    """

    __slots__ = ("arms", "depth", "path", "reply", "value")

    def __init__(self, reply: Any, value: float, depth: int, path: tuple[Arm, ...]) -> None:
        self.reply = reply
        self.value = value
        self.depth = depth
        self.path = path
        self.arms: list[Arm] = []


class Arm:
    """An agent node: one agent, applied to the response above (`fresh`: to the bare question).

    `total` is the sum of the normalised rewards below and `mean` their mean, infinite while there
    are none. `visits` starts at 1 and `best` is the child with the highest value, the first of
    several.
    """

    __slots__ = ("above", "agent", "best", "count", "fresh", "mean", "path", "total", "visits")

    def __init__(self, agent: str, above: Response, fresh: bool, seen: Arm | None = None) -> None:
        self.agent = agent
        self.above = above
        self.fresh = fresh
        self.best: Response | None = None
        self.visits, self.total, self.count, self.mean = (
            (1, 0.0, 0, math.inf) if seen is None else (seen.visits, seen.total, seen.count, seen.mean)
        )
        self.path = (*above.path, self)


class Tree:
    """Which agent samples next, and from which response.

    Call `select` for the arm to sample from and `record` with what came of it, in turn. `width` is
    how many responses a layer of the whole tree must hold before its arms can be passed through,
    `alpha` weighs exploration and `tau` is the reward's scale.
    """

    def __init__(self, agents: Sequence[str], *, alpha: float, tau: float, width: int) -> None:
        self.alpha = alpha
        self.tau = tau
        self.width = width
        self.plays = 0
        self.root = Response(None, -math.inf, 0, ())
        self.root.arms = [Arm(agent, self.root, fresh=True) for agent in agents]
        self._layer_sizes = [0]

    def select(self) -> Arm:
        """The arm that samples next, reached from the root by the highest upper confidence bound."""
        self.plays += 1
        # The bound is mean + alpha * sqrt(2 ln n / visits), n the number of this play.
        spread = 2.0 * math.log(self.plays)
        alpha, width, sizes, sqrt = self.alpha, self.width, self._layer_sizes, math.sqrt
        node = self.root
        while True:
            if not node.arms:
                self._enter(node)
            best_bound = -math.inf
            for candidate in node.arms:
                bound = candidate.mean + alpha * sqrt(spread / candidate.visits)
                if bound > best_bound:
                    best_bound, arm = bound, candidate
            # An arm may be passed through once its layer is full and it improved on what is above
            # it. The root's value is -inf, so there any child does.
            child = arm.best
            if child is None or sizes[node.depth] < width or not child.value > node.value:
                return arm
            node = child

    def record(self, arm: Arm, reply: Any, reward: float) -> None:
        """Add `reply` below `arm` as a response; its reward counts for the arm and all arms above.

        A reward of -inf marks a failed response: it counts, but takes no place in the tree.
        """
        value = normalise(reward, self.tau)
        for node in arm.path:
            node.visits += 1
            node.count += 1
            node.total += value
            node.mean = node.total / node.count
        if reward == -math.inf:
            return
        depth = arm.above.depth
        self._layer_sizes[depth] += 1
        if depth + 1 == len(self._layer_sizes):
            self._layer_sizes.append(0)
        if arm.best is None or value > arm.best.value:
            arm.best = Response(reply, value, depth + 1, arm.path)

    def _enter(self, node: Response) -> None:
        """Give a response its arms: each agent refining it, then each agent answering afresh.

        A fresh arm starts from the statistics that the root's arm of that agent has now.
        """
        roots = self.root.arms
        node.arms = [Arm(arm.agent, node, fresh=False) for arm in roots]
        node.arms += [Arm(arm.agent, node, fresh=True, seen=arm) for arm in roots]
