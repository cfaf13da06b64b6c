"""Scores answers that come with the right ones: rows of gold and pred."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from toa_exp.errors import BadInput
from toa_exp.metrics.base import Judge
from toa_exp.metrics.math import MathVerify
from toa_exp.scoring import rows as checks
from toa_exp.scoring.measure import Scored, mean, signed


def score_pairs(rows: Sequence[checks.Row], judge: Judge) -> Scored:
    """Accuracy of `pred` against `gold`, with a decision a row.

    Missing and empty answers, and those that could not be verified, are wrong and count as failed.
    Raises BadInput where a row has no `gold`.
    """
    identifiers = checks.identifiers(rows)
    given = [_pair(row, number) for number, row in enumerate(rows, start=1)]
    verdicts = asyncio.run(_judged(judge, given))
    decisions: list[dict[str, Any]] = []
    for identifier, (_, answer), verdict in zip(identifiers, given, verdicts, strict=True):
        failed = "empty" if not answer.strip() else "not verified" if verdict is None else None
        decisions.append({"id": identifier, "correct": bool(verdict), "failed": failed})
    failures = sum(row["failed"] is not None for row in decisions)
    read = {"answers": "wrapped"} if isinstance(judge, MathVerify) else {}
    signature = signed("accuracy", **judge.fingerprint(), **read, failed="wrong")
    return Scored(
        {"accuracy": mean([float(row["correct"]) for row in decisions], failures, signature)}, decisions
    )


def _pair(row: checks.Row, number: int) -> tuple[str, str]:
    where = f"row {number}"
    gold, answer = _written(row, "gold", where), _written(row, "pred", where)
    if gold is None or not gold.strip():
        raise BadInput(f"{where} has no 'gold', the right answer")
    return gold, answer or ""


def _written(row: checks.Row, field: str, where: str) -> str | None:
    """The text of a field; a number is written out, and one that is none (NaN, infinite) is missing."""
    value = row.get(field)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return checks.text(row, field, where)


async def _judged(judge: Judge, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_verdict(judge, gold, answer)) for gold, answer in pairs]
    finally:
        await judge.close()
    return [task.result() for task in asked]


async def _verdict(judge: Judge, gold: str, answer: str) -> bool | None:
    return await judge.equal(gold, answer) if answer.strip() else False
