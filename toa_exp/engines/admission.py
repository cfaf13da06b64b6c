"""Admission: engines that share cores get their requests in turn, so that they run full batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Door:
    """An engine: how many requests it works on together, whether it is given any, and those of it."""

    places: int
    open: bool = False
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """Lets `at_once` of several engines have requests at a time; requests for the others wait.

    `places` are the requests that an engine works on together. A step costs nearly as much with one of
    them as with all, and takes that time from the engines beside it. A search asks some agents more
    often than others: the engines of the others would run steps with few requests all along, at the
    cost of the one that all wait for. So an open engine with fewer requests than places is closed as
    soon as another one has more of them waiting than it has left, and finishes those while the other
    one begins. No request waits while cores are free. What a request gives does not depend on when it
    is carried out, so that this changes no result.
    """

    def __init__(self, places: Mapping[str, int], at_once: int) -> None:
        self._doors = {name: _Door(number) for name, number in places.items()}
        self._at_once = at_once

    @asynccontextmanager
    async def admitted(self, name: str) -> AsyncIterator[None]:
        """A context in which a request may be under way."""
        door = self._doors[name]
        if door.open:
            door.running += 1
        else:
            await self._wait(door)
        try:
            yield
        finally:
            self._leave(door)

    async def _wait(self, door: _Door) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        door.waiting.append(place)
        self._review()
        try:
            await place
        except asyncio.CancelledError:
            if place in door.waiting:
                door.waiting.remove(place)
            elif not place.cancelled():  # it was admitted in the meantime
                self._leave(door)
            raise

    def _leave(self, door: _Door) -> None:
        door.running -= 1
        if not door.running:
            door.open = False
        self._review()

    def _review(self) -> None:
        """Open what is due."""
        while True:
            wanted = max(self._doors.values(), key=lambda door: len(door.waiting))
            if not wanted.waiting:
                return
            opened = [door for door in self._doors.values() if door.open]
            if len(opened) >= self._at_once:
                leaving = min(opened, key=lambda door: door.running)
                if leaving.running >= min(leaving.places, len(wanted.waiting)):
                    return
                leaving.open = False
            self._open(wanted)

    @staticmethod
    def _open(door: _Door) -> None:
        door.open = True
        waiting, door.waiting = door.waiting, deque()
        for place in waiting:
            if not place.done():
                door.running += 1
                place.set_result(None)
