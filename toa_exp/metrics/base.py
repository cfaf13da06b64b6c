"""What a task asks of a judge of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Metric = float | Sequence[float]
"""What an answer's metric is: a number, or the statistics of a pooled metric (metrics/pooled.py)."""


class Judge(Protocol):
    """Decides whether the final answer of a text equals a reference."""

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides its verdicts, beside reference and text."""
        ...

    async def correct(self, reference: str, text: str) -> bool | None:
        """Whether it does; None if it cannot be told."""
        ...

    async def equal(self, reference: str, answer: str) -> bool | None:
        """Whether an answer, with nothing around it, equals the reference; None if it cannot be told."""
        ...

    async def ballots(self, texts: Sequence[str]) -> list[str | None]:
        """The final answer of each text, equal ones as the same string; None where there is none."""
        ...

    async def close(self) -> None:
        """Free what the judge holds."""
        ...
