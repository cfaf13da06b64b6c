"""Asking again for what failed, and asking once for what several want."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from itertools import count
from random import Random
from typing import Any, Generic, ParamSpec, TypeVar

from toa_exp.errors import NotNow, Permanent, Unavailable

log = logging.getLogger(__name__)
Given = ParamSpec("Given")
Value = TypeVar("Value")

_LONGEST = 60.0  # seconds
_QUIET = 60.0  # seconds between two warnings in the same words


class Patience:
    """Asks up to `retries` times more for what is Unavailable.

    It waits `backoff` seconds at first and twice as long each time, up to a minute; `retried` is called
    before each wait. What is NotNow is asked again as often as it takes. The log has every failure; of
    many in the same words a warning is made of the first, and of one a minute.
    """

    def __init__(self, retries: int, backoff: float, retried: Callable[[], None]) -> None:
        self._retries = retries
        self._backoff = backoff
        self._retried = retried
        self._jitter = Random(0)  # spreads retries over time; no result depends on it
        self._warned: dict[str, float] = {}  # when, by what was said

    async def __call__(
        self, ask: Callable[Given, Awaitable[Value]], *given: Given.args, **named: Given.kwargs
    ) -> Value:
        """The answer of `ask`; raises its last Unavailable, and at once what is Permanent."""
        left = self._retries
        for attempt in count():
            try:
                return await ask(*given, **named)
            except Permanent:
                raise
            except Unavailable as error:
                said, later = str(error), isinstance(error, NotNow)
                if not later:
                    if not left:
                        raise
                    left -= 1
            # Only now, since the error holds what the failed step had in memory.
            wait = min(_LONGEST, self._backoff * 2 ** min(attempt, 16)) * (0.5 + self._jitter.random())
            self._retried()
            next_time = "it is waited for" if later else f"trying again in {wait:.1f} s"
            log.log(self._level(said), "%s; %s", said, next_time)
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _level(self, said: str) -> int:
        """That of a log line: nobody reads the same of a hundred requests."""
        now = asyncio.get_running_loop().time()
        if now - self._warned.get(said, -math.inf) < _QUIET:
            return logging.INFO
        self._warned = {text: at for text, at in self._warned.items() if now - at < _QUIET} | {said: now}
        return logging.WARNING


class SingleFlight(Generic[Value]):
    """Makes what a key stands for once: whoever asks for it meanwhile is given the same."""

    def __init__(self) -> None:
        self._under_way: dict[bytes, asyncio.Future[Value] | None] = {}

    async def __call__(
        self,
        key: bytes,
        make: Callable[Given, Awaitable[Value]],
        *given: Given.args,
        **named: Given.kwargs,
    ) -> Value:
        """What `make` gives, or raises."""
        under_way = self._under_way
        if key in under_way:
            future = under_way[key]
            if future is None:
                future = under_way[key] = asyncio.get_running_loop().create_future()
            return await asyncio.shield(future)
        under_way[key] = None  # few are asked for twice: who asks first makes the future
        try:
            value = await make(*given, **named)
        except BaseException as error:
            future = under_way.pop(key)
            if future is not None:
                _fail(future, error)
            raise
        future = under_way.pop(key)
        if future is not None:
            future.set_result(value)
        return value


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Give those who wait for a future the error that ended its making."""
    if isinstance(error, Exception):
        future.set_exception(error)
        future.exception()  # seen: those who wait may have been cancelled
    else:
        future.cancel()
