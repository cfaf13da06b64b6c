"""How many requests to have under way at a server: as many as make it answer more of them a second."""

from __future__ import annotations

import math
from enum import Enum, auto

_ANSWERS = 128  # that a rate is taken from at least, as the times of requests differ greatly
_FEW = 16  # that show a rate of less than half, or the stall of one that should grow fourfold
_FIRST = 1024  # answers until the first trial, and after a refusal
_APART = 24  # times the answers of two trials between them, so that they cost a few percent at most
_MORE = 1.25  # times the rate, where twice the requests are worth having
_ENOUGH = 0.75  # of the rate, where a quarter of the requests has it
_CHANGED = 1.67  # times the rate, or a part in that: the server is another one


class _Phase(Enum):
    START = auto()
    HOLD = auto()
    QUARTER = auto()
    DOUBLE = auto()


class Climb:
    """Finds the number of requests under way, `limit`, from `start` on and up to `most`.

    A server with so many places has the rate of all of them from that number on; what is under way
    beyond only waits there. So, as in BBR (Cardwell et al. 2016), the limit grows by one an answer until
    its doubling twice has not raised the rate of answers by a quarter. Then the rate is tried with a
    quarter of the requests and with twice as many (hill climbing, as in Hellerstein et al. 2008): the
    limit is halved where a quarter has the same rate, and doubled where twice as many have a higher one,
    which leaves it between one and a half and three times the places. Rates are compared, and not
    the times of requests, as these differ with the length of the answers.

    A refusal halves the limit, and one during a trial with a quarter that of before the trial. From then
    on it grows as TCP's does (RFC 5681): after a row of refusals by one an answer, from `start`, up to
    half of what it was, and then by one per round of answers, until it is tried with twice as many again.
    Where the server was away in between, it grows by one an answer up to all of what it was.
    """

    def __init__(self, start: int, most: int) -> None:
        self.limit = float(start)
        self._start, self._most = float(start), float(most)
        self._base = self.limit  # without a trial
        self._phase = _Phase.START
        self._goal = self._before = math.inf  # where `START` ends, and would but for refusals
        self._refused = False  # since the last trial
        self._rates: list[float] = []  # of the doublings
        self._rate = 0.0  # at `_base`, 0 where it is not known
        self._until_trial = _FIRST
        self._next = _Phase.QUARTER
        self._skip = self._answers = 0  # of the rate that is being taken
        self._since: float | None = None

    def answered(self, now: float, in_flight: int, *, in_time: bool) -> None:
        """Take note of an answer, one of `in_flight` requests under way."""
        if in_flight > self.limit:  # those of before a trial or a refusal
            return
        if in_flight <= self.limit / 2:  # the limit was not put to the test
            self._measure(0)
            return
        if in_time and self._phase is _Phase.START:
            self.limit = min(self._most, self._goal, max(self._start, self.limit + 1))
            if self.limit == self._goal:
                self._hold(self.limit)
        elif in_time and self._phase is _Phase.HOLD and self._refused:
            self._base = self.limit = min(self._most, self.limit + 1 / self.limit)
        if self._skip:
            self._skip -= 1
        elif self._since is None:
            self._since = now
        else:
            self._answers += 1
            self._review(self._answers / max(now - self._since, 1e-9))

    def refused(self, *, away: bool = False, again: bool = False) -> None:
        """Halve the limit; `away` where there was no server, `again` where no answer came since the last."""
        if not again:
            self._before = self._goal if self._phase is _Phase.START else self._base
            self._goal = max(1.0, self._base / 2, self.limit / 2)
            if not away:
                self._refused, self._next = True, _Phase.DOUBLE
                self._until_trial = self._apart if self._phase is _Phase.DOUBLE else _FIRST
        if away:
            self._goal = self._before
        self._rate, self._rates = 0.0, []
        self._hold(max(1.0, self.limit / 2))
        if self.limit < self._goal:
            self._phase = _Phase.START

    def _review(self, rate: float) -> None:
        match self._phase:
            case _Phase.START:
                self._started(rate)
            case _Phase.HOLD:
                self._held(rate)
            case _Phase.QUARTER:
                low = rate < self._rate / 2
                if self._answers >= _ANSWERS or (low and self._answers >= _FEW):
                    self._tried(rate >= self._rate * _ENOUGH, self._base / 2, self._rate)
            case _Phase.DOUBLE:
                if self._answers >= max(_ANSWERS, self._base):
                    self._tried(rate >= self._rate * _MORE, min(self._most, self._base * 2), rate)

    def _started(self, rate: float) -> None:
        full = self.limit >= self._most
        if self._answers < _FEW or (self.limit < 2 * self._base and not full):
            return
        self._rates.append(rate)
        self._base = self.limit
        if len(self._rates) >= 3 and rate < self._rates[-3] * _MORE:
            self._hold(max(1.0, self.limit / 2))
        elif full:
            self._hold(self.limit)
        else:
            self._measure(0)

    def _held(self, rate: float) -> None:
        self._until_trial -= 1
        if self._answers < max(_ANSWERS, self._base):
            return
        if self._rate and not 1 / _CHANGED < rate / self._rate < _CHANGED:
            self._next = _Phase.DOUBLE if rate > self._rate else _Phase.QUARTER
            self._until_trial, self._rate = 0, 0.0
            self._measure(int(self.limit))  # some of these answers were of before
            return
        self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        self._measure(0)
        if self._until_trial <= 0:
            self._try()

    def _try(self) -> None:
        """Begin the next trial that makes sense."""
        may_grow, may_shrink = self._base < self._most, self._base >= 4
        self._refused = False
        if may_grow and (self._next is _Phase.DOUBLE or not may_shrink):
            self._phase, self.limit = _Phase.DOUBLE, min(self._most, self._base * 2)
        elif may_shrink:
            self._phase, self.limit = _Phase.QUARTER, self._base // 4
        self._measure(int(self.limit))

    def _tried(self, better: bool, limit: float, rate: float) -> None:
        """End a trial; one that succeeds is followed by another of its kind."""
        if better:
            self._rate, self._until_trial = rate, 0
        elif self._phase is _Phase.QUARTER and self._next is _Phase.QUARTER:
            self._next, self._until_trial = _Phase.DOUBLE, 0
        else:
            self._next, self._until_trial = _Phase.QUARTER, self._apart
        self._hold(limit if better else self._base)

    @property
    def _apart(self) -> int:
        """Answers between two trials."""
        return _APART * int(_ANSWERS + self._base)

    def _hold(self, limit: float) -> None:
        self._phase = _Phase.HOLD
        self._base = self.limit = limit
        self._measure(int(limit))

    def _measure(self, skip: int) -> None:
        """Begin to take the rate anew, `skip` answers later."""
        self._skip, self._since, self._answers = skip, None, 0
