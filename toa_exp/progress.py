"""Progress on a terminal, and log lines that do not break it."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from toa_exp.sampler import Counts


class Progress:
    """A bar over problems with samples/s, tokens/s, failures and time left; quiet elsewhere.

    `counts` is read, not kept. Samples include those that the store held.
    """

    def __init__(self, problems: int, label: str, counts: Counts) -> None:
        self._bar = tqdm(
            total=problems, desc=label, unit="problem", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        self._counts = counts

    def advance(self) -> None:
        """One more problem is done or parked."""
        self._bar.update()
        if self._bar.disable:
            return
        counts = self._counts
        elapsed = max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"{counts.samples / elapsed:.0f} samples/s, {counts.tokens / elapsed:.0f} tokens/s, "
            f"{counts.failures} failed, {counts.retries} retried",
            refresh=False,
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Handler(logging.Handler):
    """Writes log records to standard error, above a bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except (OSError, ValueError):
            self.handleError(record)
