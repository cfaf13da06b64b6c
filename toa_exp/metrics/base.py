"""What a task asks of a judge of answers."""

from __future__ import annotations

from typing import Protocol


class Judge(Protocol):
    """Decides whether the final answer of a text equals a reference."""

    async def correct(self, reference: str, text: str) -> bool:
        """Whether it does."""
        ...

    async def close(self) -> None:
        """Free what the judge holds."""
        ...
