"""Win rates that control for style, against an independent fit."""

import numpy as np
import pytest

from toa_exp.errors import BadInput
from toa_exp.metrics.style import controlled_win_rate, difference, style


def test_the_marks_of_a_text_are_counted_outside_of_code():
    text = "# Title\n- one\n2. two\n**bold** and __bold__\n```\n# code\n- code\n```\n"
    assert style(text, "characters") == [float(len(text)), 1.0, 2.0, 2.0]
    with pytest.raises(BadInput, match="tokens"):
        style(text, "words")


def test_differences_are_relative():
    found = difference([30.0, 3.0, 0.0, 0.0], [10.0, 0.0, 0.0, 0.0])
    assert found == pytest.approx([0.5, (3 / 31) / (3 / 31 + 1), 0.0, 0.0])
    assert difference([0.0] * 4, [0.0] * 4) == [0.0] * 4


def battles(count=400, strength=0.4, for_length=1.5):
    """Battles of a model that is mostly longer, with a judge that likes length."""
    rng = np.random.default_rng(0)
    styles = rng.normal(0.2, 0.3, size=(count, 4))
    rate = 1 / (1 + np.exp(-(strength + for_length * styles[:, 0] / 0.3)))
    weight = rng.integers(1, 4, size=count).astype(float)
    return np.column_stack([weight, weight * (rng.random(count) < rate), styles])


def test_the_rate_is_that_of_a_logistic_regression_at_equal_style():
    linear = pytest.importorskip("sklearn.linear_model")
    rows = battles()
    weight, won, styles = rows[:, 0], rows[:, 1] > 0, rows[:, 2:]
    model = linear.LogisticRegression(C=1e8, tol=1e-10, max_iter=1000)
    model.fit(styles, won, sample_weight=weight)
    expected = 100 / (1 + np.exp(-model.intercept_[0]))
    assert controlled_win_rate(rows) == pytest.approx(expected, abs=1e-3)


def test_what_style_alone_wins_is_no_strength():
    rows = battles(4000, strength=0.0)
    assert 100 * rows[:, 1].sum() / rows[:, 0].sum() > 65  # the judge likes length, and the model is longer
    assert controlled_win_rate(rows) == pytest.approx(50.0, abs=3.0)
    assert np.isnan(controlled_win_rate(np.zeros((3, 6))))
    assert controlled_win_rate(np.array([[1.0, 1.0, 0.1, 0, 0, 0]] * 5)) > 99
