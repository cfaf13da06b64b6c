"""Coverage: the share of problems that at least one of k samples solves."""

from __future__ import annotations

from toa_exp.errors import BadInput


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of pass@k from `correct` of `samples` samples, as a fraction.

    1 - C(n-c, k) / C(n, k), as a product that neither overflows nor cancels (Chen et al. 2021,
    section 2.1). Raises BadInput unless 0 <= correct <= samples and 1 <= k <= samples.
    """
    import numpy as np

    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise BadInput(
            f"pass@{k} of {correct} right in {samples} samples: 0 <= c <= n and 1 <= k <= n must hold"
        )
    if samples - correct < k:
        return 1.0
    if correct <= k:
        shares = k / np.arange(samples - correct + 1, samples + 1)
    else:  # the same product, with k factors instead of c
        shares = correct / np.arange(samples - k + 1, samples + 1)
    return 0.0 - float(np.expm1(np.log1p(-shares).sum()))


def sizes(smallest: int) -> list[int]:
    """The k that coverage is given at where none are asked for: 1, 2, 3, 5 by tens and powers of two."""
    steps = {digit * 10**power for power in range(9) for digit in (1, 2, 3, 5)} | {2**p for p in range(30)}
    return sorted({k for k in steps if k <= smallest} | {smallest})
