"""Which endpoint the next request goes to, and how many each is given at once."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypedDict

from toa_exp.errors import BadInput, Permanent, Unavailable

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0  # seconds, where the endpoint itself names none
_DOWN = 3  # refusals in a row after which nobody is kept waiting for the endpoint


class Refused(Unavailable):
    """An endpoint has too much to do or cannot be reached.

    `wait` are the seconds after which it asks to be tried again, None where it does not say.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class LimitFields(TypedDict, total=False):
    """The fields of `Limits`, as engines and rewards take them among their keywords."""

    start: int
    most: int
    pause: float
    longest_wait: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How the number of requests under way at an endpoint is found.

    It starts at `start` and is `most` at most. `pause` are the seconds without new requests after a
    refusal, doubling with each further one, or more where the endpoint asks for it; one that asks for
    more than `longest_wait` seconds, or gives no answer for so long, is given up.
    """

    start: int = 16
    most: int = 256
    pause: float = 0.5
    longest_wait: float = 600.0
    owner: str = "engine"  # whose fields they are, for errors

    @classmethod
    def of(cls, what: str, fields: LimitFields) -> Limits:
        """The limits as the fields of `what` give them; raises BadInput for numbers that cannot be."""
        made = cls(**fields, owner=what)
        if not 1 <= made.start <= made.most:
            raise BadInput(f"{what}.start={made.start} and {what}.most={made.most}: give 1 <= start <= most")
        if not 0 <= made.pause < math.inf or not 0 <= made.longest_wait < math.inf:
            raise BadInput(f"{what}.pause and {what}.longest_wait are seconds, 0 or more")
        return made


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who waits for a place at any of several endpoints."""

    endpoints: Sequence[Endpoint]
    timeout: float
    place: asyncio.Future[Visit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Endpoint:
    """One URL as the holder of one key may use it.

    The number of requests under way is limited as TCP limits its packets (RFC 5681): every answer
    in time lets it grow by one until the first refusal, and afterwards by one per round of answers;
    a refusal halves it and makes a pause. Requests that were sent before the last refusal say
    nothing new when they are refused too. A fault (an error 500, a lost connection) counts as a
    refusal when it is the second in a row.
    """

    def __init__(self, url: str, limits: Limits) -> None:
        self.url = url
        self.limit = float(limits.start)
        self.in_flight = 0
        self.resume_at = -math.inf
        self.limits = limits
        self._growing = True  # by one an answer, until the first refusal
        self._failures = 0  # since the last answer
        self._failing_since = math.inf
        self._cut_at = -math.inf
        self._waiting: deque[_Waiter] = deque()
        self._busy = 0.0
        self._counted_at = 0.0

    @property
    def load(self) -> float:
        """The share of its places that would be taken with one request more."""
        return (self.in_flight + 1) / self.limit

    def free(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.in_flight < int(self.limit) and now >= self.resume_at

    def down(self, now: float) -> bool:
        """Whether waiting for this endpoint is of no use for now."""
        return self._failures >= _DOWN or self.resume_at - now > self.limits.longest_wait

    def given_up(self, now: float) -> str | None:
        """Why nothing is to be expected of this endpoint any more, or None."""
        rest, silence = self.resume_at - now, now - self._failing_since
        if rest > self.limits.longest_wait:
            return f"asks to wait {rest:.0f} s"
        if rest > 0 and self._failures >= _DOWN and silence > self.limits.longest_wait:
            return f"has given no answer for {silence:.0f} s"
        return None

    def begin(self, now: float, timeout: float) -> Visit:
        """Take a place."""
        busy = self.busy_seconds(now)
        self.in_flight += 1
        return Visit(self, now, busy, timeout)

    def end(self, now: float) -> None:
        """Give a place back; it goes to whoever waits longest."""
        self.busy_seconds(now)
        self.in_flight -= 1
        self._serve()

    def wait(self, waiter: _Waiter) -> None:
        """Queue for a place."""
        self._waiting.append(waiter)

    def busy_seconds(self, now: float) -> float:
        """Seconds a request of those under way, added up: a clock that gives each its share."""
        if self.in_flight:
            self._busy += (now - self._counted_at) / self.in_flight
        self._counted_at = now
        return self._busy

    def answered(self, *, in_time: bool) -> None:
        """Take note of an answer."""
        self._failures = 0
        self._failing_since = math.inf
        if in_time and self.in_flight > self.limit / 2:  # else the limit was not put to the test
            step = 1.0 if self._growing else 1.0 / self.limit
            self.limit = min(float(self.limits.most), self.limit + step)

    def failed(self, error: Unavailable, sent: float, now: float) -> None:
        """Take note of a fault, or of a refusal (`Refused`), of a request sent at `sent`."""
        self._failing_since = min(self._failing_since, now)
        wait = error.wait if isinstance(error, Refused) else None
        if wait is None and sent < self._cut_at:
            return
        if not isinstance(error, Refused) and not self._failures:
            self._failures = 1
            return
        if sent >= self._cut_at:
            self._failures += 1
            self.limit = max(1.0, self.limit / 2)
            self._growing = False
            self._cut_at = now
        pause = min(_LONGEST_PAUSE, self.limits.pause * 2 ** min(self._failures - 1, 16))
        self._rest(max(pause, wait or 0.0), now)  # a server that always asks for 0 s is not stormed
        if self.down(now):
            self._turn_away(str(error), now)

    def _rest(self, seconds: float, now: float) -> None:
        if now + seconds > self.resume_at:
            self.resume_at = now + seconds
            asyncio.get_running_loop().call_later(seconds, self._serve)
            log.info("%s: pausing for %.1f s, then %d requests at once", self.url, seconds, int(self.limit))

    def _serve(self) -> None:
        """Give free places to those who wait."""
        now = time.monotonic()
        while self._waiting and self.free(now):
            waiter = self._waiting.popleft()
            if not waiter.place.done():  # it may have a place elsewhere, or have been cancelled
                waiter.place.set_result(self.begin(now, waiter.timeout))

    def _turn_away(self, reason: str, now: float) -> None:
        """Tell those who can go nowhere else, so that a dead endpoint does not hold them for hours."""
        for waiter in self._waiting:
            if not waiter.place.done() and all(endpoint.down(now) for endpoint in waiter.endpoints):
                waiter.place.set_exception(Unavailable(reason))
                waiter.place.exception()  # seen: who waited may have been cancelled
        self._waiting = deque(waiter for waiter in self._waiting if not waiter.place.done())


class Visit:
    """A request under way; as a context manager it tells its endpoint how it ended.

    An answer after less than half of `timeout`, in seconds, is in time. Permanent and other errors
    say nothing about the endpoint's load.
    """

    __slots__ = ("_busy", "_sent", "_timeout", "endpoint")

    def __init__(self, endpoint: Endpoint, sent: float, busy: float, timeout: float) -> None:
        self.endpoint = endpoint
        self._sent = sent
        self._busy = busy
        self._timeout = timeout

    def seconds(self) -> float:
        """The time so far, shared out over the requests under way at the endpoint meanwhile."""
        return self.endpoint.busy_seconds(time.monotonic()) - self._busy

    def __enter__(self) -> Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.monotonic()
        if error is None:
            self.endpoint.answered(in_time=now - self._sent < self._timeout / 2)
        elif isinstance(error, Unavailable) and not isinstance(error, Permanent):
            self.endpoint.failed(error, self._sent, now)
        self.endpoint.end(now)


async def enter(endpoints: Sequence[Endpoint], timeout: float) -> Visit:
    """A place at the least loaded of the endpoints, as soon as one has room.

    Raises Unavailable where all of them are down by the time that a place would be given, and
    Permanent where all are given up.
    """
    now = time.monotonic()
    free = [endpoint for endpoint in endpoints if endpoint.free(now)]
    if free:
        return min(free, key=lambda endpoint: endpoint.load).begin(now, timeout)
    reasons = [endpoint.given_up(now) for endpoint in endpoints]
    if all(reasons):
        limits = endpoints[0].limits
        raise Permanent(
            f"{endpoints[0].url} {reasons[0]}, more than {limits.owner}.longest_wait="
            f"{limits.longest_wait:g}; run again when it is there, or allow for more"
        )
    waiter = _Waiter(endpoints, timeout)
    for endpoint in endpoints:
        endpoint.wait(waiter)
    try:
        return await waiter.place
    except asyncio.CancelledError:
        if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
            waiter.place.result().endpoint.end(time.monotonic())
        raise
