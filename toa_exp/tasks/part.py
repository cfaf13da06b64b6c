"""Which problems of a task's data are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from toa_exp.core import Problem
from toa_exp.errors import BadInput
from toa_exp.tasks.source import chosen_ids


def check_limit(limit: object, noun: str = "problem") -> None:
    """Raises BadInput for a `task.limit` that is neither null nor an integer of 1 or more."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise BadInput(f"task.limit={limit}: give a number of {noun}s, 1 or more, or null for all")


class Part:
    """The first `limit` problems of those that `ids` names, as `source.chosen_ids` reads it; None is all.

    `noun` is what the task calls a problem in errors. Raises BadInput for a limit below 1.
    """

    def __init__(
        self, limit: int | None, ids: Sequence[str | int] | str | int | None, noun: str = "problem"
    ) -> None:
        check_limit(limit, noun)
        self._limit = limit
        self._ids = chosen_ids(ids)
        self._noun = noun

    def names(self, identifier: str) -> bool:
        """Whether `ids` has an id, or is none."""
        return self._ids is None or identifier in self._ids

    def take(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """Those of `problems` that are taken; no more is read than that needs."""
        kept = 0
        for problem in problems:
            if self.names(problem.id):
                yield problem
                kept += 1
                if kept == self._limit:
                    return

    def checked(self, taken: Iterable[Problem], where: str) -> Iterator[Problem]:
        """The problems taken, one after the other.

        Raises BadInput, with `where` the data are, for an id that occurs twice, one that is named and
        not there, and where there are none.
        """
        seen: set[str] = set()
        for problem in taken:
            if problem.id in seen:
                raise BadInput(f"{where}: the id {problem.id!r} occurs twice; ids must be unique")
            seen.add(problem.id)
            yield problem
        if self._ids is not None and (missing := self._ids - seen):
            raise BadInput(f"{where} has no {self._noun} with id {', '.join(sorted(missing)[:5])}")
        if not seen:
            raise BadInput(f"{where} has no {self._noun}s")
