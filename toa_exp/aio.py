"""Waiting for several things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

from toa_exp.errors import Unavailable

Item = TypeVar("Item")
Value = TypeVar("Value")


class Once(Generic[Value]):
    """What whoever asks first has made, for all; it is made again after Unavailable, and after `end`."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Value]]) -> None:
        self._make = make
        self._making: asyncio.Task[Value] | None = None

    async def get(self) -> Value:
        """The value. One who is cancelled ends only its own waiting."""
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        making = self._making
        try:
            return await asyncio.shield(making)
        except Unavailable:
            if self._making is making:
                self._making = None
            raise

    @property
    def made(self) -> Value | None:
        """The value where there is one already."""
        making = self._making
        done = making is not None and making.done() and not making.cancelled() and making.exception() is None
        return making.result() if making is not None and done else None

    async def end(self) -> Value | None:
        """Forget the value, after waiting for it; None where there is none."""
        making, self._making = self._making, None
        if making is None:
            return None
        if not making.done():  # else nothing may come in between, and the value be lost
            await asyncio.wait([making])
        return None if making.cancelled() or making.exception() is not None else making.result()


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


async def in_order(
    items: Iterable[Item],
    work: Callable[[Item], Awaitable[Value]],
    done: Callable[[Item, Value], None],
    at_once: int,
    *,
    ahead: int,
) -> None:
    """Call `done` with each item and what `work` makes of it, in the order of the items.

    `at_once` items are at work at the same time. Some `ahead` further ones are begun while one before them is
    not done; what is made of them waits in memory. The first error ends it all.
    """
    queue: asyncio.Queue[tuple[Item, asyncio.Task[Value]] | None] = asyncio.Queue(max(ahead, at_once))
    slots = asyncio.Semaphore(at_once)

    async def run(item: Item) -> Value:
        try:
            return await work(item)
        finally:
            slots.release()

    async def start(group: asyncio.TaskGroup) -> None:
        for item in items:
            await slots.acquire()
            await queue.put((item, group.create_task(run(item))))
        await queue.put(None)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(start(group))
            while (entry := await queue.get()) is not None:
                item, working = entry
                done(item, await working)
    except BaseExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
