"""What the runner asks of a reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.draws import Score


class Reward(Protocol):
    """Scores texts, higher is better.

    `shape` is the architecture its FLOPs are counted from, None where no model runs. `score` is
    called for many texts at once and batches them as it likes; it raises Unavailable or Permanent
    as an engine does.
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
