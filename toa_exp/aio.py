"""Waiting for several things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


async def gather_all(runs: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """All results, or the first error once every run has ended.

    Nothing is cancelled when one fails, so that what the others drew is stored.
    """
    if len(runs) == 1:
        return [await runs[0]]
    results = await asyncio.gather(*runs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
