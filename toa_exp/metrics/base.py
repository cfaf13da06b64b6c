"""What a task asks of a judge of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Judge(Protocol):
    """Decides whether the final answer of a text equals a reference."""

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides its verdicts, beside reference and text."""
        ...

    async def correct(self, reference: str, text: str) -> bool:
        """Whether it does."""
        ...

    async def close(self) -> None:
        """Free what the judge holds."""
        ...
