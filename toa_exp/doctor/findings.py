"""Findings: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from toa_exp.errors import ToaError


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is OK, WARN (a run works, but may not do what is meant) or FAIL (it will not work)."""

    level: str
    what: str
    said: str

    def line(self) -> str:
        """The finding on one line."""
        whose = self.what.rpartition(" of ")[2]
        said = " ".join(self.said.split()).removeprefix(f"{whose}: ")
        return f"{self.level:4} {self.what}: {said}"


class Findings:
    """Collects findings and tells each to `tell` at once, the same one once only."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: set[str] = set()
        self.failed = 0

    def ok(self, what: str, said: str) -> None:
        """Something is as it should be."""
        self._add(Finding("OK", what, said))

    def warn(self, what: str, said: str) -> None:
        """Something may not do what is meant; `said` ends with the mend."""
        self._add(Finding("WARN", what, said))

    def fail(self, what: str, said: str) -> None:
        """Something will not work; `said` ends with the mend."""
        self._add(Finding("FAIL", what, said))

    @contextmanager
    def checking(self, what: str) -> Iterator[None]:
        """Turn an error of this package into a failure, and go on."""
        try:
            yield
        except ToaError as error:
            self.fail(what, str(error))

    def _add(self, finding: Finding) -> None:
        line = finding.line()
        if line not in self._told:
            self._told.add(line)
            self.failed += finding.level == "FAIL"
            self._tell(line)
