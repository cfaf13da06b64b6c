"""Which segments of a test set a file of translations has, and how many it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toa_exp.errors import BadInput
from toa_exp.scoring import rows as checks
from toa_exp.tasks.source import rows as rows_of
from toa_exp.tasks.testsets import size


@dataclass(frozen=True, slots=True)
class Segments:
    """The test set: a file of the task's own (`path`), or `testset` of sacrebleu's index; of `pair`."""

    path: str | None
    testset: str | None
    pair: str | None

    def chosen(
        self, rows: Sequence[checks.Row], limit: int | None, ids: set[str] | None
    ) -> tuple[Sequence[checks.Row], int]:
        """The rows of the segments that `ids` and `limit` name, and how many of these have none.

        Where the test set is neither at hand nor of known size, it is taken to end with the highest id, if
        ids are numbers. Raises BadInput for rows that are none of it, and where no row is left.
        """
        found = checks.identifiers(rows)
        numbered = all(row.get("id") in (None, "") for row in rows)
        expected = self._expected()
        if expected is None:
            kept = [row for row, one in zip(rows, found, strict=True) if ids is None or one in ids]
            absent = self._absent(found, kept, limit, ids)
            return _some(kept[:limit], "the file"), absent
        if numbered:
            if len(rows) > len(expected):
                raise BadInput(f"the file has {len(rows)} rows, and the test set {len(expected)} segments")
            found = expected[: len(rows)]
        elif unknown := sorted(set(found) - set(expected)):
            raise BadInput(
                f"id {', '.join(map(repr, unknown[:5]))} is none of the {len(expected)} segments of "
                f"task.path={self.path}"
            )
        wanted = [one for one in expected if ids is None or one in ids][:limit]
        by_id = dict(zip(found, rows, strict=True))
        kept = [by_id[one] for one in wanted if one in by_id]
        return _some(kept, "the file"), len(wanted) - len(kept)

    def _expected(self) -> list[str] | None:
        """The ids of the task's own file."""
        if self.path is None:
            return None
        return [str(row.get("id", number)) for number, row in enumerate(rows_of(self.path, None))]

    def _absent(
        self, found: Sequence[str], kept: Sequence[object], limit: int | None, ids: set[str] | None
    ) -> int:
        if ids is not None:  # that all of them are there is seen to before
            return 0
        whole = size(self.testset, self.pair) if self.testset and self.pair else None
        if whole is None:
            whole = highest(found)
        elif len(found) > whole:
            raise BadInput(
                f"the file has {len(found)} rows, and {self.testset} {self.pair} has {whole} segments; "
                f"translations of other segments take task=wmt"
            )
        return max(0, (whole if limit is None else min(limit, whole)) - len(kept[:limit]))


def highest(found: Sequence[str]) -> int:
    """How many segments there are up to the highest id, where ids are numbers from 0 or from 1."""
    if not all(one.isascii() and one.isdigit() for one in found):
        return len(found)
    numbers = [int(one) for one in found]
    return max(numbers) + (0 in numbers)


def _some(kept: Sequence[checks.Row], where: str) -> Sequence[checks.Row]:
    if not kept:
        raise BadInput(f"{where} has none of the segments that task.ids and task.limit name")
    return kept
