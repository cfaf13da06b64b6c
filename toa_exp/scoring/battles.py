"""Scores Arena-Hard's battles and judgments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from toa_exp.errors import BadInput, choose
from toa_exp.metrics.arena import (
    INTERVAL,
    WEIGHT,
    Battle,
    battles_of,
    interval,
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
    and second. A game without a valid verdict is left out and counts as failed.
    """
    identifiers = checks.identifiers(
        rows, "id" if "id" in rows[0] else "uid" if "uid" in rows[0] else "question_id"
    )
    models = sorted({str(row.get("model")) for row in rows})
    if len(models) > 1:
        raise BadInput(f"the judgments are of several models: {', '.join(models[:5])}; score each apart")
    battles: list[Battle] = []
    decisions: list[dict[str, Any]] = []
    for identifier, row in zip(identifiers, rows, strict=True):
        labels = _labels(row, identifier)
        orders = [(_GENERATED, _BASELINE), (_BASELINE, _GENERATED)]
        if "games" in row:
            orders.reverse()
        valid = []
        for label, (first, second) in zip(labels, orders, strict=True):
            found = battles_of(label, first, second)
            valid.append(bool(found))
            battles += found
        decisions.append(
            {"id": identifier, "verdicts": labels, "failed": None if all(valid) else "no verdict"}
        )
    failed = sum(
        label is None or not battles_of(label, "", "") for row in decisions for label in row["verdicts"]
    )
    if not battles:
        raise BadInput("no judgment has a valid verdict; there is nothing to score")
    if failed:
        log.warning(
            "%d of %d games have no valid verdict: left out, and counted as failed", failed, 2 * len(rows)
        )
    measures = _measures(battles, _GENERATED, _BASELINE, failed)
    return Scored({"score": measures["score"]}, decisions)


def _measures(battles: Sequence[Battle], system: str, anchor: str, failed: int) -> dict[str, Measure]:
    def elo(some: Sequence[Battle]) -> float:
        found = ratings(some, anchor) if any(anchor in (b.first, b.second) for b in some) else {}
        return found.get(system, 1000.0)

    rating = elo(battles)
    made = {"ratings": "bradley_terry", "baseline": anchor, "weight": WEIGHT, "failed": "left_out"}
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
    if row.get("winner") not in _WINNERS:
        raise BadInput(f"{where}: winner={row.get('winner')!r}; it is {', '.join(_WINNERS)}")
    return Battle(first, second, _WINNERS[row["winner"]])


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
        games = row["games"]
        if not isinstance(games, list) or len(games) != 2:
            raise BadInput(f"{where}: 'games' holds two games, with the baseline first and second")
        return [None if game is None else game.get("score") for game in games]
    texts = [checks.text(row, field, where) for field in ("judgement_gen_base", "judgement_base_gen")]
    return [None if text is None else verdict(text) for text in texts]
