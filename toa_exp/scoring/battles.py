"""Scores Arena-Hard's battles and judgments."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from toa_exp.errors import BadInput, choose
from toa_exp.metrics.arena import (
    INTERVAL,
    WEIGHT,
    Battle,
    battles_of,
    games,
    interval,
    linked,
    ratings,
    verdict,
    win_rate,
)
from toa_exp.scoring import rows as checks
from toa_exp.scoring.measure import Measure, Scored, signed

log = logging.getLogger(__name__)

_BASELINES = ["gpt-4-0314", "o3-mini-2025-01-31"]
"""Arena-Hard's own, of v0.1 and v2."""
_WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
_FIRST_RULE = "arena-hard-auto-v0.1"
_GENERATED, _BASELINE = "outputs", "baseline"


def score_battles(rows: Sequence[checks.Row], *, system: str | None, baseline: str | None) -> Scored:
    """`score` (win rate over the baseline in per cent, Bradley-Terry) and `elo` of one model.

    Rows have model_a, model_b and winner (model_a, model_b or tie). The baseline is given, or
    Arena-Hard's own, or the one model that is in every battle.
    """
    battles = [_battle(row, number) for number, row in enumerate(rows, start=1)]
    names = sorted({name for battle in battles for name in (battle.first, battle.second)})
    anchor = _anchor(battles, names, baseline)
    others = [name for name in names if name != anchor]
    if system is None and len(others) == 1:
        system = others[0]
    if system not in names:
        raise choose("system", system, others)
    return Scored(_measures(battles, system, anchor, failed=0))


def score_judgments(rows: Sequence[checks.Row]) -> Scored:
    """`score` of the judgments of one model: its win rate over the baseline in per cent.

    A row holds both games: `judgement_gen_base` and `judgement_base_gen`, the judge's texts with the
    model's answer first and second, or `games` of arena-hard-auto, which have the baseline first
    and second. A game without a valid verdict is left out and counts as failed. Texts are read as
    NeMo-Skills does, and `games` of rows with `question_id` as arena-hard-auto v0.1 did: A<B is no
    verdict. `games` of other rows (`uid`) are read as arena-hard-auto does now: A<B is one, and both
    games of a row are left out, and count as failed, if one has no verdict.
    """
    identifiers = checks.identifiers(
        rows, "id" if "id" in rows[0] else "uid" if "uid" in rows[0] else "question_id"
    )
    for field in ("model", "judge"):
        names = sorted({str(row.get(field)) for row in rows})
        if len(names) > 1:
            raise BadInput(f"the judgments are of several {field}s: {', '.join(names[:5])}; score each apart")
    rule = "nemo-skills"
    if "games" in rows[0]:
        rule = _FIRST_RULE if "question_id" in rows[0] else "arena-hard-auto"
    battles: list[Battle] = []
    decisions: list[dict[str, Any]] = []
    failed = 0
    for identifier, row in zip(identifiers, rows, strict=True):
        labels = counted = _labels(row, identifier)
        orders = [(_GENERATED, _BASELINE), (_BASELINE, _GENERATED)]
        if "games" in row:
            orders.reverse()
            counted = labels if rule == _FIRST_RULE else games(labels)
        valid = []
        for label, (first, second) in zip(counted, orders, strict=True):
            found = battles_of(label, first, second)
            valid.append(bool(found))
            battles += found
        failed += valid.count(False)
        decisions.append(
            {"id": identifier, "verdicts": labels, "failed": None if all(valid) else "no verdict"}
        )
    if not battles:
        raise BadInput("no judgment has a valid verdict; there is nothing to score")
    if failed:
        log.warning(
            "%d of %d games have no valid verdict: left out, and counted as failed", failed, 2 * len(rows)
        )
    measures = _measures(battles, _GENERATED, _BASELINE, failed, verdicts=rule)
    return Scored({"score": measures["score"]}, decisions)


def _measures(
    battles: Sequence[Battle], system: str, anchor: str, failed: int, **rule: str
) -> dict[str, Measure]:
    if not linked(battles, system, anchor):
        raise BadInput(
            f"no battles lead from {system!r} to the baseline {anchor!r}, so nothing says how they compare; "
            f"choose another system or baseline"
        )

    def elo(some: Sequence[Battle]) -> float:
        return ratings(some, anchor)[system] if linked(some, system, anchor) else math.nan

    rating = elo(battles)
    made = {"ratings": "bradley_terry", "baseline": anchor, "weight": WEIGHT, "failed": "left_out", **rule}
    own = [battle for battle in battles if {battle.first, battle.second} == {system, anchor}]
    won = sum(b.won if b.first == system else 1.0 - b.won for b in own)
    empirical = {"empirical_win_rate": 100.0 * won / len(own)} if own else {}
    low, high = interval(battles, elo)
    n = len(battles)
    return {
        "score": Measure(
            win_rate(rating),
            (win_rate(low), win_rate(high)),
            n,
            failed,
            signed("score", **made),
            INTERVAL,
            empirical,
        ),
        "elo": Measure(
            rating, (low, high), n, failed, signed("elo", anchor=1000, scale=400, **made), INTERVAL
        ),
    }


def _battle(row: checks.Row, number: int) -> Battle:
    where = f"row {number}"
    first, second = (checks.text(row, field, where) for field in ("model_a", "model_b"))
    if not first or not second or first == second:
        raise BadInput(f"{where}: model_a={first!r}, model_b={second!r}; give two models")
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in _WINNERS:
        raise BadInput(f"{where}: winner={winner!r:.60}; it is {', '.join(_WINNERS)}")
    return Battle(first, second, _WINNERS[winner])


def _anchor(battles: Sequence[Battle], names: Sequence[str], baseline: str | None) -> str:
    if baseline is not None:
        if baseline not in names:
            raise choose("baseline", baseline, list(names))
        return baseline
    known = [name for name in _BASELINES if name in names]
    common = [name for name in names if all(name in (b.first, b.second) for b in battles)]
    if len(known) == 1 or (not known and len(common) == 1):
        return (known or common)[0]
    raise BadInput(f"baseline=<model> says which of {', '.join(names)} the others are compared with")


def _labels(row: checks.Row, identifier: str) -> list[str | None]:
    where = f"judgment {identifier!r}"
    if "games" in row:
        both = row["games"]
        if not isinstance(both, list) or len(both) != 2:
            raise BadInput(f"{where}: 'games' holds two games, with the baseline first and second")
        return [_label(game, where) for game in both]
    texts = [checks.text(row, field, where) for field in ("judgement_gen_base", "judgement_base_gen")]
    return [None if text is None else verdict(text) for text in texts]


def _label(game: object, where: str) -> str | None:
    """The verdict of one of arena-hard-auto's games, None where it has none; raises BadInput."""
    if game is None:
        return None
    if not isinstance(game, dict) or "score" not in game:
        raise BadInput(f"{where}: a game is an object with 'score', or null, and one is {game!r:.60}")
    return checks.text(game, "score", where)
