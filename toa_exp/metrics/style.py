"""Style of answers, and win rates that control for it, as Arena-Hard has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from toa_exp.errors import BadInput, choose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STYLE = "at_no_difference"
"""Where the rate is read off. Published leaderboards centre differences over the battles of all models."""
LENGTHS = ["tokens", "characters"]
_CODE = re.compile(r"```[^`]*```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


def style(text: str, length: str) -> list[float]:
    """Length, and how many headers, list items and bold passages there are outside of code.

    `length` is in tokens of GPT-4o, as published, or in characters. Raises BadInput where the
    tokens' table cannot be loaded.
    """
    plain = _CODE.sub("", text)
    marks = [float(len(pattern.findall(plain))) for pattern in (_HEADER, _LIST, _BOLD)]
    return [_length(text, length), *marks]


def difference(first: list[float], second: list[float]) -> list[float]:
    """How two styles differ: relative length, then densities of the marks (arena-hard-auto)."""
    longer = first[0] + second[0]
    parts = [(first[0] - second[0]) / longer if longer else 0.0]
    for mine, other in zip(first[1:], second[1:], strict=True):
        density, against = mine / (first[0] + 1.0), other / (second[0] + 1.0)
        parts.append((density - against) / (density + against + 1.0))
    return parts


def controlled_win_rate(rows: NDArray[np.float64]) -> float:
    """Win rate in per cent at equal style; a row is: battles, battles won, differences of style.

    A logistic regression of the battles on the differences, whose intercept is the strength over the
    baseline (arena-hard-auto's style control). There differences are centred over the battles of all
    models of a leaderboard; over those of one model that would control for nothing, so here they are
    not centred. They are scaled by their sample standard deviation.
    """
    import numpy as np

    rows = rows[rows[:, 0] > 0]
    if not len(rows):
        return float("nan")
    weight, won = rows[:, 0], rows[:, 1] / rows[:, 0]
    if won.min() == won.max() and won[0] in (0.0, 1.0):  # at whatever style
        return float(100.0 * won[0])
    styles = rows[:, 2:]
    mean = np.average(styles, axis=0, weights=weight)
    squares = (weight[:, None] * (styles - mean) ** 2).sum(axis=0)
    spread = np.sqrt(squares / max(weight.sum() - 1.0, 1.0))
    # A style that always differs as much is not told from strength.
    varies = spread > 1e-9
    features = np.column_stack([np.ones(len(rows)), (styles / np.where(varies, spread, 1.0))[:, varies]])
    # Newton's method; the slight ridge keeps separable battles (all won) from running away.
    coefficients, ridge = np.zeros(features.shape[1]), 1e-6
    for _ in range(50):
        rate = 1.0 / (1.0 + np.exp(-(features @ coefficients)))
        gradient = features.T @ (weight * (won - rate)) - ridge * coefficients
        curvature = (features * (weight * rate * (1.0 - rate))[:, None]).T @ features
        step = np.linalg.solve(curvature + ridge * np.eye(len(gradient)), gradient)
        coefficients = coefficients + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-10:
            break
    return float(100.0 / (1.0 + np.exp(-coefficients[0])))


def _length(text: str, length: str) -> float:
    if length == "characters":
        return float(len(text))
    if length != "tokens":
        raise choose("metric.length", length, LENGTHS)
    import tiktoken

    try:
        encoder = tiktoken.encoding_for_model("gpt-4o")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the tokens of GPT-4o could not be loaded ({type(error).__name__}). Fill $TIKTOKEN_CACHE_DIR "
            f"where there is a net, or give metric.length=characters"
        ) from error
    return float(len(encoder.encode(text, disallowed_special=())))
