"""Metrics of whole sets of answers."""

from random import Random

import numpy as np
import pytest
import sacrebleu

from toa_exp.metrics.pooled import bleu, chrf, lc_win_rate, pools_of, statistics
from toa_exp.stats import bootstrap

WORDS = ["der", "die", "das", "Haus", "Hund", "Apfel", "zwei", "drei", "vier", "am", "um", "für", "Euro"]


def texts(seed: int, count: int = 60) -> tuple[list[str], list[str]]:
    """References, and answers that have some of their words wrong."""
    rng = Random(seed)
    references = [[rng.choice(WORDS) for _ in range(rng.randint(5, 12))] for _ in range(count)]
    answers = [[w if rng.random() < 0.8 else rng.choice(WORDS) for w in words] for words in references]
    return [" ".join(w) for w in answers], [" ".join(w) for w in references]


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    answers, references = texts(0)
    rows = {
        name: np.array([statistics(name, a, r) for a, r in zip(answers, references, strict=True)])
        for name in ("bleu", "chrf")
    }
    assert bleu(rows["bleu"]) == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score, abs=1e-9)
    assert chrf(rows["chrf"]) == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, abs=1e-9)


def test_the_interval_of_a_pooled_metric_is_that_of_resampled_corpora() -> None:
    answers, references = texts(1)
    rows = np.array([statistics("bleu", a, r) for a, r in zip(answers, references, strict=True)])
    value, lower, upper = bootstrap(rows, bleu)
    rng = np.random.default_rng(7)
    scores = []
    for _ in range(400):
        chosen = rng.integers(len(answers), size=len(answers))
        picked = [answers[n] for n in chosen], [[references[n] for n in chosen]]
        scores.append(sacrebleu.corpus_bleu(*picked).score)
    assert lower < value < upper
    assert [lower, upper] == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=1.5)


def test_pools_are_found_by_their_path() -> None:
    assert pools_of({"bleu": "toa_exp.metrics.pooled.bleu"}) == {"bleu": bleu}


def rows_of(wins: list[float], differences: list[float]) -> np.ndarray:
    return np.array([[1.0, w, d] for w, d in zip(wins, differences, strict=True)])


def test_without_differences_of_length_the_rate_is_the_mean() -> None:
    wins = [0.2, 0.9, 0.7, 0.4] * 50
    assert lc_win_rate(rows_of(wins, [0.0] * 200)) == pytest.approx(55.0, abs=0.01)


def test_a_preference_for_length_alone_is_no_win() -> None:
    rng = Random(0)
    differences = [rng.gauss(8.0, 10.0) for _ in range(4000)]
    spread = np.std(differences)
    wins = [float(rng.random() < 1 / (1 + np.exp(-2.0 * np.tanh(d / spread)))) for d in differences]
    assert 100 * np.mean(wins) > 65
    assert lc_win_rate(rows_of(wins, differences)) == pytest.approx(50.0, abs=3.0)


def test_all_won_is_finite_and_high() -> None:
    rate = lc_win_rate(rows_of([1.0] * 50, [float(n) for n in range(50)]))
    assert 99.0 < rate <= 100.0
