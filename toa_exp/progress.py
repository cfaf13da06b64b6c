"""Progress on a terminal, and log lines that do not break it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from toa_exp.sampler import Counts

_WIDTH = 100
_EVERY = 1.0  # seconds
_LINE = 60.0  # seconds, where there is no terminal

log = logging.getLogger(__name__)


class Progress:
    """A bar over problems with samples/s, tokens/s, failures and time left; elsewhere a log line a minute.

    `counts` is read, not kept. Samples include those that the store held.
    """

    def __init__(self, problems: int, label: str, counts: Counts) -> None:
        self._bar = _bar(problems, label, "problem")
        self._counts = counts
        self._problems, self._done, self._started = problems, 0, time.perf_counter()

    async def watch(self) -> None:
        """Say how things stand all the time, since the first problem may take minutes; until cancelled."""
        while not self._bar.disable:
            await asyncio.sleep(_EVERY)
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.refresh()
        while True:
            await asyncio.sleep(_LINE)
            log.info("%d of %d problems done; %s", self._done, self._problems, self._state())

    def advance(self) -> None:
        """One more problem is done or parked."""
        self._done += 1
        if not self._bar.disable:
            self._bar.set_postfix_str(self._state(), refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _state(self) -> str:
        counts = self._counts
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        return (
            f"{counts.samples} samples, {counts.samples / elapsed:.0f} samples/s, "
            f"{counts.tokens / elapsed:.0f} tokens/s, {counts.failures} failed, {counts.retries} retried"
        )


class Stage:
    """A part of a longer piece of work, with its steps done and the time left.

    A bar on a terminal; elsewhere a log line at the start, every `every` seconds and at the end.
    """

    def __init__(self, label: str, steps: int, unit: str, log: logging.Logger, every: float = 20.0) -> None:
        self._bar = _bar(steps, label, unit)
        self._label, self._steps, self._unit, self._log, self._every = label, steps, unit, log, every
        self._done, self._started = 0, time.perf_counter()
        self._said = self._started
        if self._bar.disable:
            log.info("%s: %d %ss", label, steps, unit)

    def advance(self, count: int, state: str = "") -> None:
        """So many more steps are done; `state` is said beside them."""
        self._done += count
        self._bar.update(count)
        self._bar.set_postfix_str(state, refresh=False)
        now = time.perf_counter()
        if self._bar.disable and (now - self._said >= self._every or self._done == self._steps):
            self._said, gone = now, now - self._started
            left = gone / max(1, self._done) * (self._steps - self._done)
            parts = [
                f"{self._done}/{self._steps} {self._unit}s",
                f"{gone:.0f} s",
                f"{left:.0f} s left",
                state,
            ]
            self._log.info("%s: %s", self._label, ", ".join(part for part in parts if part))

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def _bar(total: int, label: str, unit: str) -> Any:
    shown = sys.stderr.isatty()
    # A terminal that does not tell its width says 0, and tqdm would draw nothing.
    known = shown and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    width = {"dynamic_ncols": True} if known else {"ncols": _WIDTH}
    return tqdm(total=total, desc=label, unit=unit, disable=not shown, **width)


class Handler(logging.Handler):
    """Writes log records to standard error, above a bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except (OSError, ValueError):
            self.handleError(record)
