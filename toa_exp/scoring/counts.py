"""Scores counts of correct samples: rows of n (samples) and c (correct ones), one a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toa_exp.errors import BadInput, choose
from toa_exp.metrics.coverage import pass_at_k, sizes
from toa_exp.scoring import rows as checks
from toa_exp.scoring.measure import Measure, Scored, mean, signed

GROUPS = ("set", "model", "benchmark")
_PROBLEM = ("problem", "id")
_MOST = 10**9  # samples of a problem; more are a slip


def score_counts(
    rows: Sequence[checks.Row],
    *,
    k: int | float | str | Sequence[int] | None,
    chosen: Mapping[str, str | None],
) -> Scored:
    """Coverage, pass@<k>, of the rows of one set, model and benchmark, which `chosen` names.

    Without `k` it is at 1, 2, 3, 5, 10, 20... and powers of two, up to the fewest samples of a
    problem. Raises BadInput for rows of several groups, for counts that cannot be, and for a `k`
    over the samples of any problem: a mean over the others would be of other problems.
    """
    kept = group(rows, chosen)
    counts = [_count(row, number) for number, row in enumerate(kept, start=1)]
    identifiers = checks.identifiers(kept, problem_field(kept))
    fewest = min(samples for samples, _ in counts)
    return Scored(coverage(counts, _asked(k, fewest)), _decisions(identifiers, counts))


def coverage(counts: Sequence[tuple[int, int]], ks: Sequence[int], failed: int = 0) -> dict[str, Measure]:
    """pass@<k> for each k, of (samples, correct) of each problem; `failed` samples are among the wrong."""
    signature = signed("pass@k", estimator="unbiased", source="Chen2021")
    return {f"pass@{k}": mean([pass_at_k(n, c, k) for n, c in counts], failed, signature) for k in ks}


def _asked(k: int | float | str | Sequence[int] | None, fewest: int) -> list[int]:
    if k is None:
        return sizes(fewest)
    ks = [k] if isinstance(k, int | float | str) else list(k)
    for one in ks or [k]:
        if not isinstance(one, int) or isinstance(one, bool) or not 1 <= one <= fewest:
            raise BadInput(f"k={one}: give integers from 1 to {fewest}, the fewest samples of a problem")
    return [int(one) for one in ks]


def problem_field(rows: Sequence[checks.Row]) -> str:
    """The field that names a row's problem."""
    return next((name for name in _PROBLEM if rows[0].get(name) not in (None, "")), "id")


def group(rows: Sequence[checks.Row], chosen: Mapping[str, str | None]) -> list[checks.Row]:
    """The rows of the set, model and benchmark that `chosen` names; raises BadInput for several groups."""
    kept = list(rows)
    for field in GROUPS:
        names = list(dict.fromkeys(str(row[field]) for row in kept if row.get(field) not in (None, "")))
        wanted = chosen.get(field)
        if wanted is not None:
            if str(wanted) not in names:
                raise choose(field, wanted, names or ["none: the rows have no such field"])
            kept = [row for row in kept if str(row.get(field)) == str(wanted)]
    groups = list(dict.fromkeys(tuple(str(row.get(field, "")) for field in GROUPS) for row in kept))
    if len(groups) > 1:
        listed = "; ".join(
            " ".join(f"{f}={v!r}" for f, v in zip(GROUPS, g, strict=True) if v) for g in groups
        )
        raise BadInput(f"the counts are of {len(groups)} groups; choose one: {listed}")
    return kept


def _count(row: checks.Row, number: int) -> tuple[int, int]:
    where = f"row {number}"
    samples, correct = checks.integer(row, "n", where), checks.integer(row, "c", where)
    if not 1 <= samples <= _MOST or not 0 <= correct <= samples:
        raise BadInput(
            f"{where}: n={samples}, c={correct}: n is from 1 to {_MOST} samples, and c from 0 to n"
        )
    return samples, correct


def _decisions(identifiers: Sequence[str], counts: Sequence[tuple[int, int]]) -> list[Mapping[str, object]]:
    return [{"id": i, "n": n, "c": c} for i, (n, c) in zip(identifiers, counts, strict=True)]
