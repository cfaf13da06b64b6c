"""Metrics of a whole set of answers that are no mean over them, such as BLEU.

A task gives such a metric as a list of numbers an answer: statistics that add up over answers. A
function of this module (a `Pool`) makes the metric of the rows of many answers. It is named by its
import path, under `run.pools` in config.yaml, so that a run folder can be read without its task.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toa_exp.errors import missing_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pool = Callable[["NDArray[np.float64]"], float]
"""From the statistics of answers, [answers, statistics], to the metric."""


def pools_of(paths: Mapping[str, str]) -> dict[str, Pool]:
    """The functions that import paths name."""
    found = {}
    for name, path in paths.items():
        module, _, function = path.rpartition(".")
        found[name] = getattr(importlib.import_module(module), function)
    return found


@functools.cache
def sacrebleu_metric(name: str, target: str | None = None) -> Any:
    """sacrebleu's `bleu` or `chrf`, with its tokenizer for a target language such as zh, ja or ko.

    Raises BadInput where the language's tokenizer is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if name == "chrf":
        return CHRF()
    try:
        return BLEU(trg_lang=target or "")
    except RuntimeError as error:  # what sacrebleu makes of a missing MeCab
        raise missing_extra(f"the tokenizer of {target!r}", "wmt") from error


def statistics(
    metric: str, text: str, references: str | Sequence[str], target: str | None = None
) -> list[float]:
    """What sacrebleu counts in one answer for `metric`, bleu or chrf (Post 2018, Popović 2015).

    `target` is the language of the answer, which decides the tokenizer of BLEU.
    """
    given = [references] if isinstance(references, str) else references
    (row,) = sacrebleu_metric(metric, target)._extract_corpus_statistics([text], [[r] for r in given])
    return [float(value) for value in row]


def bleu(rows: NDArray[np.float64]) -> float:
    """Corpus BLEU, 0 to 100, of sacrebleu, whatever its tokenizer was."""
    return float(sacrebleu_metric("bleu")._compute_score_from_stats(rows.sum(axis=0).tolist()).score)


def chrf(rows: NDArray[np.float64]) -> float:
    """Corpus chrF2, 0 to 100, of sacrebleu's default signature."""
    return float(sacrebleu_metric("chrf")._compute_score_from_stats(rows.sum(axis=0).tolist()).score)


def lc_win_rate(rows: NDArray[np.float64]) -> float:
    """Length-controlled win rate in per cent; a row is: comparisons, wins, length differences.

    Wins are regressed on tanh(length difference / its standard deviation) by logistic regression, and
    the rate is that at no difference. It is that of the rows alone, for judgements and baselines of one's
    own: AlpacaEval's (Dubois et al. 2024, metrics/length_control.py) also has terms of instruction
    difficulty and of gamed baselines, which move it by several points.
    """
    import numpy as np

    wins, difference = rows[:, 1] / rows[:, 0], rows[:, 2] / rows[:, 0]
    spread = difference.std()
    features = np.column_stack([np.ones(len(rows)), np.tanh(difference / spread if spread else difference)])
    # Newton's method; the slight ridge keeps separable data (all won) from running away.
    weights, ridge = np.zeros(2), 1e-3
    for _ in range(25):
        rate = 1.0 / (1.0 + np.exp(-(features @ weights)))
        gradient = features.T @ (wins - rate) - ridge * weights
        curvature = (features * (rate * (1.0 - rate))[:, None]).T @ features + ridge * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    return float(100.0 / (1.0 + np.exp(-weights[0])))


def judged_win_rate(rows: NDArray[np.float64]) -> float:
    """Win rate in per cent over the comparisons that were judged; a row is: judged (1 or 0), won."""
    judged = rows[:, 0].sum()
    return float(100.0 * rows[:, 1].sum() / judged) if judged else float("nan")


def judged_standard_error(rows: NDArray[np.float64]) -> float:
    """Standard error of `judged_win_rate` in per cent, as AlpacaEval gives it."""
    judged = rows[rows[:, 0] > 0]
    wins = judged[:, 1] / judged[:, 0]
    return float(100.0 * wins.std(ddof=1) / len(wins) ** 0.5) if len(wins) > 1 else float("nan")


def judged_mean(rows: NDArray[np.float64]) -> float:
    """The mean of a number over the answers that have one; a row is: how many (1 or 0), their sum."""
    known = rows[rows[:, 0] > 0]
    return float((known[:, 1] / known[:, 0]).mean()) if len(known) else float("nan")


def lc_win_rate_of_judged(rows: NDArray[np.float64]) -> float:
    """`lc_win_rate` over the comparisons that were judged; a row begins with judged (1 or 0)."""
    judged = rows[rows[:, 0] > 0]
    return lc_win_rate(judged) if len(judged) else float("nan")
