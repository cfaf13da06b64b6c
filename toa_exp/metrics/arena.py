"""Arena-Hard's score: verdicts of a judge as battles, and Bradley-Terry ratings of these."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROUNDS = 100
SEED = 42
INTERVAL = f"bootstrap95%,resamples={ROUNDS},seed={SEED}"
WEIGHT = 3  # of a verdict that one answer is much better
_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_WINS = {"A>>B": (1.0, WEIGHT), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, WEIGHT)}
"""What a verdict gives the first answer, and how many battles it counts as; others are invalid."""
_REVERSED = {"B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A"}
"""What arena-hard-auto's show_result.py also reads."""
_SCALE = 400.0
_ANCHOR = 1000.0


@dataclass(frozen=True, slots=True)
class Battle:
    """A comparison of two models; `won` is 1 where the first is better, 0.5 for a tie, else 0."""

    first: str
    second: str
    won: float


def verdict(text: str) -> str | None:
    """The label of a judgement, such as A>>B; None without one, and where it gives several."""
    labels = set(_LABEL.findall(text))
    return labels.pop() if len(labels) == 1 else None


def games(labels: Sequence[str | None]) -> list[str | None]:
    """The verdicts of both games of a question as arena-hard-auto counts them.

    A<B is as good as B>A, and where one of them has no verdict neither counts.
    """
    found = [_REVERSED.get(label, label) if label is not None else None for label in labels]
    return found if all(label in _WINS for label in found) else [None] * len(found)


def battles_of(label: str | None, first: str, second: str) -> list[Battle]:
    """The battles that a verdict counts as; none where it is not valid (Li et al. 2024, v0.1)."""
    if label is None or label not in _WINS:
        return []
    won, times = _WINS[label]
    return [Battle(first, second, won)] * times


def ratings(battles: Sequence[Battle], anchor: str) -> dict[str, float]:
    """Bradley-Terry ratings on the Elo scale by maximum likelihood; the anchor has 1000.

    Ties are half a win for both. A model that won or lost all its battles has an infinite rating.
    """
    import numpy as np

    names = sorted({battle.first for battle in battles} | {battle.second for battle in battles})
    place = {name: number for number, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for battle in battles:
        wins[place[battle.first], place[battle.second]] += battle.won
        wins[place[battle.second], place[battle.first]] += 1.0 - battle.won
    strengths = _fitted(wins)
    own = place[anchor]
    strengths = strengths - strengths[own]
    unbeaten, winless = wins.sum(axis=0) == 0, wins.sum(axis=1) == 0
    others = np.arange(len(names)) != own
    strengths[others & (unbeaten | winless[own])] = np.inf
    strengths[others & (winless | unbeaten[own])] = -np.inf
    return {name: float(_ANCHOR + _SCALE / np.log(10.0) * strengths[place[name]]) for name in names}


def linked(battles: Sequence[Battle], first: str, second: str) -> bool:
    """Whether battles lead from one model to the other: else nothing says how they compare."""
    met: dict[str, set[str]] = {}
    for battle in battles:
        met.setdefault(battle.first, set()).add(battle.second)
        met.setdefault(battle.second, set()).add(battle.first)
    reached, ahead = {first}, [first]
    while ahead:
        new = met.get(ahead.pop(), set()) - reached
        reached |= new
        ahead += new
    return second in reached


def win_rate(rating: float) -> float:
    """How often a model of this rating beats the anchor, in per cent."""
    import numpy as np

    with np.errstate(over="ignore"):
        return float(100.0 / (1.0 + np.float64(10.0) ** ((_ANCHOR - rating) / _SCALE)))


def interval(
    battles: Sequence[Battle], statistic: Callable[[Sequence[Battle]], float]
) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile over resampled battles, by Arena-Hard's own resampling.

    What is infinite counts as 10,000. Resamples that the statistic is not defined on (NaN) are left
    out; both bounds are NaN where there is no other.
    """
    import numpy as np

    generator = np.random.RandomState(SEED)
    found = []
    for _ in range(ROUNDS):
        chosen = generator.choice(len(battles), size=len(battles), replace=True)
        found.append(statistic([battles[place] for place in chosen]))
    defined = [value for value in found if not np.isnan(value)]
    if not defined:
        return float("nan"), float("nan")
    lower, upper = np.percentile(np.clip(defined, -1e4, 1e4), [2.5, 97.5])
    return float(lower), float(upper)


def _fitted(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strengths (natural logarithms of odds) that maximise the likelihood, by Newton's method."""
    import numpy as np

    games = wins + wins.T
    strengths = np.zeros(len(wins))
    one_sided = (wins.sum(axis=1) == 0) | (wins.sum(axis=0) == 0)
    for _ in range(100):
        rates = 1.0 / (1.0 + np.exp(strengths[None, :] - strengths[:, None]))
        gradient = wins.sum(axis=1) - (games * rates).sum(axis=1)
        spread = games * rates * (1.0 - rates)
        curvature = np.diag(spread.sum(axis=1)) - spread
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        strengths = strengths + np.clip(step, -2.0, 2.0)
        if np.abs(step[~one_sided]).max(initial=0.0) < 1e-10:
            break
    return strengths
