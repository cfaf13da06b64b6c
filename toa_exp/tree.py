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

    __slots__ = ("arms", "reply", "value")

    def __init__(self, reply: Any, value: float) -> None:
        self.reply = reply
        self.value = value
        self.arms: list[Arm] = []


class Arm:
    """An agent node: one agent, refining `draft`, the response above, or answering afresh (None).

    `total` is the sum of the normalised rewards below and `mean` their mean, infinite while there
    are none. `visits` starts at 1. `best` is the child with the highest value, the first of several.
    """

    __slots__ = ("agent", "best", "count", "draft", "mean", "total", "visits")

    def __init__(self, agent: str, draft: Any = None) -> None:
        self.agent = agent
        self.draft = draft
        self.best: Response | None = None
        self.visits = 1
        self.total = 0.0
        self.count = 0
        self.mean = math.inf

    def fresh_copy(self) -> Arm:
        """An arm that answers afresh and starts from the statistics that this one has now."""
        copy = Arm(self.agent)
        copy.visits, copy.total, copy.count, copy.mean = self.visits, self.total, self.count, self.mean
        return copy


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
        self.root = Response(None, -math.inf)
        self.root.arms = [Arm(agent) for agent in agents]
        self._layer_sizes = [0]
        self._path: list[Arm] = []  # of the arm selected last; nodes know no parent

    def select(self) -> Arm:
        """The arm that samples next, reached from the root by the highest upper confidence bound."""
        self.plays += 1
        # The bound is mean + alpha * sqrt(2 ln n / visits), n the number of this play.
        spread = 2.0 * math.log(self.plays)
        alpha, sqrt = self.alpha, math.sqrt
        node = self.root
        path: list[Arm] = []
        while True:
            best_bound = -math.inf
            for candidate in node.arms or self._enter(node):
                bound = candidate.mean + alpha * sqrt(spread / candidate.visits)
                if bound > best_bound:
                    best_bound, arm = bound, candidate
            path.append(arm)
            # An arm may be passed through once its layer is full and it improved on what is above
            # it. The root's value is -inf, so there any child does.
            child = arm.best
            if child is None or self._layer_sizes[len(path) - 1] < self.width or child.value <= node.value:
                self._path = path
                return arm
            node = child

    def record(self, reply: Any, reward: float) -> None:
        """Add `reply` as a response below the selected arm; its reward counts for all arms above.

        A reward of -inf marks a failed response: it counts, but takes no place in the tree.
        """
        value = normalise(reward, self.tau)
        for arm in self._path:
            arm.visits += 1
            arm.count += 1
            arm.total += value
            arm.mean = arm.total / arm.count
        if reward == -math.inf:
            return
        depth = len(self._path)
        self._layer_sizes[depth - 1] += 1
        if depth == len(self._layer_sizes):
            self._layer_sizes.append(0)
        arm = self._path[-1]
        if arm.best is None or value > arm.best.value:
            arm.best = Response(reply, value)

    def _enter(self, node: Response) -> list[Arm]:
        """Give a response its arms: each agent refining it, then each agent answering afresh."""
        roots = self.root.arms
        node.arms = [Arm(arm.agent, node.reply) for arm in roots]
        node.arms += [arm.fresh_copy() for arm in roots]
        return node.arms
