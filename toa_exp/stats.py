"""Intervals by the bootstrap over problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def bootstrap_means(
    values: NDArray[np.float64], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means of the columns of `values` (problems x columns) with percentile intervals.

    Problems are resampled with replacement, all columns together (Efron and Tibshirani 1993,
    section 13.3). Returns mean, lower and upper bound, one entry a column. The same seed gives the
    same resamples to any two runs over the same number of problems.
    """
    import numpy as np

    problems = len(values)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    for row in means:
        weights = np.bincount(generator.integers(problems, size=problems), minlength=problems)
        row[:] = weights @ values / problems
    tail = (1.0 - level) / 2
    lower, upper = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return values.mean(axis=0), lower, upper
