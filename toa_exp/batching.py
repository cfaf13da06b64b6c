"""Micro-batches: requests that wait at the same time are handled together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Hands whatever is waiting to `handle`, at most `size` items at once, in one thread of its own.

    While a batch is handled the next one gathers, so no request waits for a full batch. `order`
    gives the length of an item: those that are alike go together. An exception of `handle` goes to
    every item of its batch, and so does a ValueError where it gives not one result an item.
    """

    def __init__(
        self,
        handle: Callable[[list[Item]], list[Result]],
        size: int,
        order: Callable[[Item], int] | None = None,
    ) -> None:
        self._handle = handle
        self._size = size
        self._order = order
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The result of one item."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._take()
            items = [item for item, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._handle, items)
                if len(results) != len(items):
                    raise ValueError(f"a batch of {len(items)} was given {len(results)} results")
            except Exception as error:  # whatever it is, those who wait must be told
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        self._task = None

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        """The next batch: the item that waited longest and those nearest to it in length."""
        chosen: Sequence[int] = range(min(self._size, len(self._waiting)))
        order = self._order
        if order is not None and len(self._waiting) > self._size:
            lengths = [order(item) for item, _ in self._waiting]
            nearest = sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0]))
            chosen = [0, *nearest[: self._size - 1]]
        taken = set(chosen)
        batch = [self._waiting[i] for i in chosen]
        self._waiting = [entry for i, entry in enumerate(self._waiting) if i not in taken]
        return batch

    async def close(self) -> None:
        """Wait for the batch at work and end the thread."""
        await asyncio.to_thread(self._thread.shutdown)
