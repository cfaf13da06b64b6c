"""What the runner asks of a reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.draws import Score
from toa_exp.errors import BadInput


@dataclass(frozen=True, slots=True)
class Range:
    """Where a reward's scores lie: most of them from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def of(cls, bounds: list[float] | None) -> Range | None:
        """The range that a configuration gives as [low, high]; None stays unknown. Raises BadInput."""
        if bounds is None:
            return None
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise BadInput(f"reward.range={bounds}: give [low, high], or null where it is unknown")
        return cls(float(bounds[0]), float(bounds[1]))


class Reward(Protocol):
    """Scores texts, higher is better.

    `shape` is the architecture its FLOPs are counted from, None where no model runs. A reward may also
    declare the `range` of its scores (None: unknown), and by `warms_up` False that there is nothing to
    try it on (rewards/warmup.py). One that is made of others has them as `members`
    (rewards/ensemble.py). `score` is called for many texts at once and batches them as it
    likes; it raises Unavailable or Permanent as an engine does.
    """

    shape: Architecture | None

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides its scores."""
        ...

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; finite."""
        ...

    async def close(self) -> None:
        """Free what the reward holds."""
        ...
