"""Intervals by the bootstrap over problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def resamples(problems: int, count: int = RESAMPLES, seed: int = SEED) -> Iterator[NDArray[np.int64]]:
    """`count` draws with replacement of as many problems as there are, as indices.

    The same seed gives the same draws to any two runs over the same number of problems.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.integers(problems, size=problems)


def interval(estimates: NDArray[np.float64], level: float = LEVEL) -> NDArray[np.float64]:
    """The percentile interval of the first axis: lower bounds, then upper ones."""
    import numpy as np

    tail = (1.0 - level) / 2
    bounds: NDArray[np.float64] = np.quantile(estimates, [tail, 1.0 - tail], axis=0)
    return bounds


def bootstrap_means(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means of the columns of `values` (problems x columns) with percentile intervals.

    Problems are resampled with replacement, all columns together (Efron and Tibshirani 1993,
    section 13.3). Returns mean, lower and upper bound, one entry a column.
    """
    import numpy as np

    problems = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    for row, chosen in zip(means, resamples(problems), strict=True):
        row[:] = np.bincount(chosen, minlength=problems) @ values / problems
    lower, upper = interval(means)
    return values.mean(axis=0), lower, upper


def bootstrap(
    rows: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], float]
) -> tuple[float, float, float]:
    """A statistic of `rows` (problems x columns) with its percentile interval: value, lower, upper.

    Resamples that the statistic is not defined on (NaN: no row of them was judged) are left out; all are
    NaN where there is no other.
    """
    import numpy as np

    estimates = np.array([statistic(rows[chosen]) for chosen in resamples(len(rows))])
    defined = estimates[~np.isnan(estimates)]
    lower, upper = interval(defined) if len(defined) else (np.nan, np.nan)
    return statistic(rows), float(lower), float(upper)
