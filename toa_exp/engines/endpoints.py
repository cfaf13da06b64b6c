"""Which endpoint the next request goes to, and how many each is given at once."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from toa_exp.engines.climbing import Climb
from toa_exp.engines.limits import Limits
from toa_exp.errors import NotNow, Permanent, Unavailable

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0  # seconds, where the endpoint itself names none
_DOWN = 3  # faults and refusals in a row after which an endpoint is down
_ALONE = 50  # answers since the last refusal, where another says nothing of the load: BBR bears 2 % of losses
_FORGOTTEN = 120.0  # seconds without a request after which failures are of the past; retries wait 90 at most


class Late(Unavailable):
    """No answer came in time."""


class Refused(NotNow):
    """An endpoint has too much to do or cannot be reached.

    `wait` are the seconds after which it asks to be tried again, None where it does not say.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Away(Refused):
    """An endpoint cannot be reached: it is not that it has too much to do."""


class BadGateway(Away):
    """What is before an endpoint cannot reach it, or had no answer to this one request."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who waits for a place at any of several endpoints."""

    endpoints: Sequence[Endpoint]
    timeout: float
    place: asyncio.Future[Visit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Endpoint:
    """One URL as the holder of one key may use it.

    The number of requests under way is limited by what `Climb` finds; a refusal halves it and makes a
    pause, unless it is the only one in many answers. Requests that were sent before that say nothing
    new, whether they are refused too or answered. An answer that is late counts as a refusal, and so
    does a fault (an error 500, a lost connection) when it is the second in a row.

    Where refusals are all that comes, those who wait go on waiting until the endpoint is given up;
    where it is down with faults, or late, they are told so.
    """

    def __init__(self, url: str, limits: Limits) -> None:
        self.url = url
        self.in_flight = 0
        self.resume_at = -math.inf
        self.limits = limits
        self._climb = Climb(min(limits.start, limits.most), limits.most)
        self._failures = 0  # since the last answer
        self._failing_since = math.inf
        self._failed_at = self._answered_at = -math.inf  # the last time
        self._reason = ""  # of the last failure
        self._away = False  # whether that was a refusal
        self._told = False  # that nothing but refusals comes
        self._answers = 0  # since the last refusal
        self._cut_at = -math.inf
        self._cut = False  # with no answer since to a request sent later
        self._waiting: deque[_Waiter] = deque()
        self._busy = 0.0
        self._counted_at = 0.0

    @property
    def limit(self) -> float:
        """How many requests may be under way, rounded down."""
        return self._climb.limit

    @property
    def load(self) -> float:
        """The share of its places that would be taken with one request more."""
        return (self.in_flight + 1) / self.limit

    def free(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.in_flight < int(self.limit) and now >= self.resume_at

    def down(self, now: float) -> bool:
        """Whether nobody is kept waiting for this endpoint for now."""
        broken = self._failures >= _DOWN and not self._away
        return broken or self.given_up(now) is not None

    def given_up(self, now: float) -> Permanent | None:
        """Why nothing is to be expected of this endpoint any more, or None."""
        rest, silence, longest = self.resume_at - now, now - self._failing_since, self.limits.longest_wait
        if rest > longest:
            what = f"asks to wait {rest:.0f} s"
        elif rest >= 0 and self._failures >= _DOWN and silence > longest:
            what = f"has given no answer for {silence:.0f} s"
        else:
            return None
        return Permanent(
            f"{self.url} {what}, more than {self.limits.owner}.longest_wait={longest:g}; run again when it "
            f"is there, or allow for more. The last time: {self._reason}"
        )

    def begin(self, now: float, timeout: float, among: Sequence[Endpoint]) -> Visit:
        """Take a place, for a request that any of the endpoints `among` which this is one may answer."""
        busy = self.busy_seconds(now)
        self.in_flight += 1
        return Visit(self, now, busy, timeout, among)

    def end(self, now: float) -> None:
        """Give a place back; it goes to whoever waits longest."""
        self.busy_seconds(now)
        self.in_flight -= 1
        self._serve(now)

    def wait(self, waiter: _Waiter) -> None:
        """Queue for a place."""
        self._waiting.append(waiter)

    def busy_seconds(self, now: float) -> float:
        """Seconds a request of those under way, added up: a clock that gives each its share."""
        if self.in_flight:
            self._busy += (now - self._counted_at) / self.in_flight
        self._counted_at = now
        return self._busy

    def answers(self, sent: float) -> bool:
        """Whether there was an answer since `sent`, or since the last failure."""
        return self._answered_at > min(sent, self._failed_at)

    def answered(self, now: float, *, in_time: bool, sent: float = math.inf) -> None:
        """Take note of the answer to a request sent at `sent`."""
        if self._told:
            self._told = False
            log.warning("%s answers again, after %.0f s", self.url, now - self._failing_since)
        self._answered_at = now
        self._failures = 0
        self._failing_since = math.inf
        self._answers += 1
        if sent > self._cut_at:
            self._cut = False
            self._climb.answered(now, self.in_flight, in_time=in_time)

    def failed(self, error: Unavailable, sent: float, now: float) -> None:
        """Take note of the fault, refusal or lateness of a request sent at `sent`."""
        if sent - max(self._failed_at, self.resume_at) > _FORGOTTEN:
            self._failures, self._failing_since = 0, math.inf
        self._failing_since, self._failed_at = min(self._failing_since, now), now
        self._reason, self._away = str(error), isinstance(error, Refused)
        wait = error.wait if isinstance(error, Refused) else None
        new, alone = sent > self._cut_at, not self._failures
        if isinstance(error, Refused | Late):
            alone, self._answers = self._answers >= _ALONE, 0
        self._failures += new
        if new and not alone:
            self._climb.refused(away=isinstance(error, Away), again=self._cut)
            self._cut, self._cut_at = True, now
        elif wait is None:
            return
        if self._away and self._failures >= _DOWN and not self._told:
            self._told = True
            log.warning(
                "%s refuses all requests; it is asked again now and then, up to %s.longest_wait=%g s",
                self.url,
                self.limits.owner,
                self.limits.longest_wait,
            )
        longest = min(_LONGEST_PAUSE, self.limits.longest_wait)
        pause = min(longest, self.limits.pause * 2 ** min(self._failures - 1, 16))
        self._rest(max(pause, wait or 0.0), now)  # a server that always asks for 0 s is not stormed
        if self.down(now):
            self._turn_away(now)

    def _rest(self, seconds: float, now: float) -> None:
        if now + seconds > self.resume_at:
            self.resume_at = now + seconds
            asyncio.get_running_loop().call_at(self.resume_at, self._serve, self.resume_at)
            log.info("%s: pausing for %.1f s, then %d requests at once", self.url, seconds, int(self.limit))

    def _serve(self, now: float) -> None:
        """Give free places to those who wait."""
        while self._waiting and self.free(now):
            waiter = self._waiting.popleft()
            if not waiter.place.done():  # it may have a place elsewhere, or have been cancelled
                waiter.place.set_result(self.begin(now, waiter.timeout, waiter.endpoints))

    def _turn_away(self, now: float) -> None:
        """Tell those who can go nowhere else, so that a broken endpoint does not hold them for hours."""
        for waiter in self._waiting:
            if not waiter.place.done() and all(endpoint.down(now) for endpoint in waiter.endpoints):
                waiter.place.set_exception(_given_up(waiter.endpoints, now) or Unavailable(self._reason))
                waiter.place.exception()  # seen: who waited may have been cancelled
        self._waiting = deque(waiter for waiter in self._waiting if not waiter.place.done())


class Visit:
    """A request under way; as a context manager it tells its endpoint how it ended.

    An answer after less than half of `timeout`, in seconds, is in time. Permanent and other errors
    say nothing about the endpoint's load. A refusal becomes Permanent where all endpoints that might
    have answered are given up, and BadGateway a fault where others were answered meanwhile.
    """

    __slots__ = ("_among", "_busy", "_sent", "_timeout", "endpoint")

    def __init__(
        self, endpoint: Endpoint, sent: float, busy: float, timeout: float, among: Sequence[Endpoint]
    ) -> None:
        self.endpoint = endpoint
        self._among = among
        self._sent = sent
        self._busy = busy
        self._timeout = timeout

    def seconds(self) -> float:
        """The time so far, shared out over the requests under way at the endpoint meanwhile."""
        return self.endpoint.busy_seconds(asyncio.get_running_loop().time()) - self._busy

    def __enter__(self) -> Visit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = asyncio.get_running_loop().time()
        failed: BaseException | None = error
        if isinstance(error, BadGateway) and self.endpoint.answers(self._sent):
            failed = Unavailable(str(error))
        if error is None:
            self.endpoint.answered(now, in_time=now - self._sent < self._timeout / 2, sent=self._sent)
        elif isinstance(failed, Unavailable) and not isinstance(failed, Permanent):
            self.endpoint.failed(failed, self._sent, now)
        self.endpoint.end(now)
        if isinstance(failed, Refused):
            failed = _given_up(self._among, now) or failed
        if failed is not None and failed is not error:
            raise failed from error


async def enter(endpoints: Sequence[Endpoint], timeout: float) -> Visit:
    """A place at the least loaded of the endpoints, as soon as one has room.

    Raises Unavailable where all of them come to be down meanwhile, and Permanent where all are given up.
    """
    now = asyncio.get_running_loop().time()
    free = [endpoint for endpoint in endpoints if endpoint.free(now)]
    if free:
        return min(free, key=lambda endpoint: endpoint.load).begin(now, timeout, endpoints)
    hopeless = _given_up(endpoints, now)
    if hopeless is not None:
        raise hopeless
    waiter = _Waiter(endpoints, timeout)
    for endpoint in endpoints:
        endpoint.wait(waiter)
    try:
        return await waiter.place
    except asyncio.CancelledError:
        if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
            waiter.place.result().endpoint.end(asyncio.get_running_loop().time())
        raise


def _given_up(endpoints: Sequence[Endpoint], now: float) -> Permanent | None:
    """Why the first of the endpoints is given up, where all of them are."""
    reasons = [endpoint.given_up(now) for endpoint in endpoints]
    return reasons[0] if all(reasons) else None
