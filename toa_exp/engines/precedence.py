"""Which of several batches, that take turns in one place, writes the next token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

_PART = 0.5  # of a text's mean length, for which the oldest request may hold up fuller batches


class Batch(Protocol):
    """Requests for one model."""

    @property
    def demand(self) -> int:
        """Rows that its next step is about."""

    @property
    def oldest(self) -> int:
        """Number of the request that has waited longest; numbers rise in the order of requests."""


AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Precedence:
    """Oldest request first, but not for long at the expense of fuller batches.

    A step takes nearly as long for few rows as for many. If the fullest batch always went first, models that
    are seldom asked would be passed over until nothing else is left, and the problems that wait for
    them would make up the end of the run alone. If the oldest request always went first, a text much longer
    than the others would be written by itself while all others wait. So the oldest goes first until the steps
    it took from fuller batches come to half a text's length, and from then on the fullest does.
    """

    def __init__(self) -> None:
        self._oldest = -1
        self._held_up = 0.0  # steps of the fullest batch that the oldest request took
        self._tokens = 0
        self._texts = 0

    def choose(self, batches: Iterable[AnyBatch]) -> AnyBatch:
        """The batch whose turn it is. There must be one, and each must have requests."""
        in_order = sorted(batches, key=lambda batch: batch.oldest)
        first = in_order[0]
        if first.oldest != self._oldest:
            self._oldest, self._held_up = first.oldest, 0.0
        fullest = max(in_order, key=lambda batch: batch.demand)  # the oldest of several
        lost = 1 - first.demand / fullest.demand
        if lost and self._held_up * self._texts >= _PART * self._tokens > 0:
            return fullest
        self._held_up += lost
        return first

    def finished(self, tokens: int) -> None:
        """Take note of a text of so many tokens."""
        self._tokens += tokens
        self._texts += 1
