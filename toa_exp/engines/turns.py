"""Taking turns: more models than fit into memory, each awake while it has most to do."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from toa_exp.errors import BadInput, Unavailable

log = logging.getLogger(__name__)

_RESOLUTION = 1e-9  # seconds; below that of the clock an alarm would come again and again

Change = Callable[[str], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Member:
    """A model that takes turns.

    `open` says that it is awake and takes requests; once it is closed those under way are its last.
    `waiting` holds the places of those who wait, and since when. The seconds are those of the last
    time, None before there was one; those of the first time awake, which may be a start, are apart.
    """

    name: str
    awake: bool = False
    open: bool = False
    running: int = 0
    waiting: deque[tuple[asyncio.Future[None], float]] = field(default_factory=deque)
    start_seconds: float | None = None
    wake_seconds: float | None = None
    sleep_seconds: float | None = None

    @property
    def ready(self) -> int:
        """Requests that could be at work now, were it awake."""
        return self.running + len(self.waiting)


class Turns:
    """Lets `awake` of several models be awake at a time; requests for the others wait.

    `wake` and `sleep` are given the name of a model, and return once it is so. A model that has
    nothing left to do makes room at once for one that has. While one with r requests keeps another
    with q of them waiting, a share 1 - r/q of the machine's time counts as lost: once what was lost
    amounts to the seconds that a swap takes, as last measured, the one that has least to do takes no
    further requests, finishes those under way and makes room. (The rule of rent or buy, which costs
    at most twice what the best moment would: Karlin et al. 1988.) So that none starves, a request
    that has waited `patience` times those seconds makes it do the same; where all models have plenty
    to do, swaps therefore take about 1/`patience` of the time.

    What a request gives does not depend on when it is carried out, so that turns change no result.
    An error of `wake` goes to those who wait for that model, one of `sleep` to all who wait; but where
    `sleep` raises Unavailable the model is taken to have ended, and things go on.
    """

    def __init__(
        self, names: Iterable[str], awake: int, wake: Change, sleep: Change, *, patience: float = 10.0
    ) -> None:
        self.swaps = 0
        self.swap_seconds = 0.0
        self._members = {name: _Member(name) for name in names}
        self._awake = awake
        self._wake = wake
        self._sleep = sleep
        self._patience = patience
        self._swap: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._lost = 0.0
        self._rate = 0.0
        self._reviewed = 0.0
        self._first: float | None = None
        self._last = 0.0

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """A context in which the model is awake; entered when its turn has come."""
        member = self._members[name]
        if self._first is None:
            self._first = _now()
        if member.open:
            member.running += 1
            self._review()
        else:
            await self._wait(member)
        try:
            yield
        finally:
            member.running -= 1
            self._last = _now()
            if not member.running:
                self._drained.set()
            self._review()

    async def close(self) -> None:
        """Start no further swap, and drop the one under way; the models stay as they are."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._swap is not None:
            self._swap.cancel()
            await asyncio.gather(self._swap, return_exceptions=True)
        for member in self._members.values():
            member.awake = member.open = False

    def report(self) -> str:
        """How often models were swapped, and the share of the time that this took."""
        seconds = 0.0 if self._first is None else max(self._last - self._first, 0.0)
        share = self.swap_seconds / seconds if seconds else 0.0
        return (
            f"{', '.join(self._members)} took turns, {self._awake} awake at a time: {self.swaps} swaps took "
            f"{self.swap_seconds:.1f} s, {share:.1%} of {seconds:.1f} s"
        )

    async def _wait(self, member: _Member) -> None:
        """Queue for a turn; on return the request counts as under way."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (place, _now())
        member.waiting.append(entry)
        self._review()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                member.running -= 1
                self._drained.set()
            elif entry in member.waiting:
                member.waiting.remove(entry)
            self._review()
            raise

    def _review(self) -> None:
        """Start a swap where one is due, or set the clock for when it will be."""
        now = _now()
        self._lost += self._rate * (now - self._reviewed)
        self._reviewed, self._rate = now, 0.0
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._swap is not None:
            return
        leaving = self._leaving()
        wanted = self._wanted(leaving)
        if wanted is None:
            self._lost = 0.0
        elif leaving is None or self._due(leaving, wanted, now):
            self._lost = 0.0
            self._swap = asyncio.get_running_loop().create_task(self._exchange(leaving))

    def _due(self, leaving: _Member, wanted: _Member, now: float) -> bool:
        """Whether the one that leaves has to; if not yet, the clock is set for it."""
        if not leaving.ready:
            return True
        cost = self._cost(leaving)
        self._rate = max(0.0, 1.0 - leaving.ready / wanted.ready)
        oldest = min(member.waiting[0][1] for member in self._asleep())
        left = oldest + self._patience * cost - now
        if self._rate:
            left = min(left, (cost - self._lost) / self._rate)
        if left <= _RESOLUTION:
            return True
        self._alarm = asyncio.get_running_loop().call_later(left, self._review)
        return False

    async def _exchange(self, leaving: _Member | None) -> None:
        """Let one finish and sleep, then wake the one that is wanted most by then."""
        try:
            taken = 0.0
            if leaving is not None:
                leaving.open = False
                while leaving.running:
                    self._drained = asyncio.Event()
                    await self._drained.wait()
                leaving.sleep_seconds = await self._put_to_sleep(leaving)
                taken = leaving.sleep_seconds
            wanted = self._wanted(leaving)
            woken = None if wanted is None else await self._get_up(wanted)
            if woken is not None and leaving is not None:
                self.swaps += 1
                self.swap_seconds += taken + woken
        finally:
            self._swap = None
        self._review()

    async def _put_to_sleep(self, member: _Member) -> float:
        """Returns the seconds that it took."""
        started = _now()
        member.awake = False
        try:
            await self._sleep(member.name)
        except Unavailable as error:  # it ended instead: its place is free, and it is started when wanted
            log.warning("%s did not go to sleep as it should: %s", member.name, error)
        except Exception as error:  # nobody awaits a swap: those who wait for the place must be told
            for waiting in self._asleep():
                for place in self._called(waiting):
                    place.set_exception(error)
        return _now() - started

    async def _get_up(self, member: _Member) -> float | None:
        """Wake a model and admit those who wait for it, or tell them why it does not.

        Returns the seconds that it took, None where it does not.
        """
        started = _now()
        try:
            await self._wake(member.name)
        except Exception as error:  # whatever it is, those who wait must be told
            for place in self._called(member):
                place.set_exception(error)
            return None
        seconds = _now() - started
        if member.start_seconds is None:
            member.start_seconds = seconds
        else:
            member.wake_seconds = seconds
        member.awake = member.open = True
        for place in self._called(member):
            member.running += 1
            place.set_result(None)
        return seconds

    @staticmethod
    def _called(member: _Member) -> list[asyncio.Future[None]]:
        """Those who wait no longer."""
        waiting, member.waiting = member.waiting, deque()
        return [place for place, _ in waiting if not place.done()]

    def _asleep(self) -> list[_Member]:
        return [member for member in self._members.values() if member.waiting]

    def _leaving(self) -> _Member | None:
        """The one awake that has least to do; None where there is a free place."""
        awake = [member for member in self._members.values() if member.awake]
        return min(awake, key=lambda m: m.ready) if len(awake) >= self._awake else None

    def _wanted(self, leaving: _Member | None) -> _Member | None:
        """The one that most requests wait for, or that one has waited for too long; never who leaves."""
        asleep = [member for member in self._asleep() if member is not leaving]
        if not asleep:
            return None
        oldest = min(asleep, key=lambda m: m.waiting[0][1])
        if _now() - oldest.waiting[0][1] >= self._patience * self._cost(leaving):
            return oldest
        return max(asleep, key=lambda m: len(m.waiting))

    def _cost(self, leaving: _Member | None) -> float:
        """Seconds that a swap takes, as far as one was measured: waking counts as the longest.

        Starting counts only until one was woken that had slept, since that may take much less.
        """
        members = self._members.values()
        waking = [member.wake_seconds for member in members if member.wake_seconds is not None]
        starting = [member.start_seconds for member in members if member.start_seconds is not None]
        asleep = (leaving.sleep_seconds or 0.0) if leaving is not None else 0.0
        return max(waking or starting, default=0.0) + asleep


def check_residents(residents: str | int) -> int | None:
    """The number of models in memory at once, None for "auto". Raises BadInput."""
    if residents == "auto":
        return None
    if not isinstance(residents, int) or residents < 1:
        raise BadInput(f"engine.residents={residents!r}: give auto, or how many models are in memory at once")
    return residents


def check_patience(patience: float) -> float:
    """How many times as long as a swap a request waits at most. Raises BadInput for what is none."""
    if not 0 <= patience < math.inf:
        raise BadInput(f"engine.patience={patience}: give a number of times as long as a swap, 0 or more")
    return patience


def _now() -> float:
    return asyncio.get_running_loop().time()
