"""Scores AlpacaEval judgements: preference tables, annotations, or outputs with their annotations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from toa_exp.errors import BadInput
from toa_exp.metrics.length_control import INSTRUCTIONS, Comparison, length_controlled, reference_file
from toa_exp.scoring import rows as checks
from toa_exp.scoring.measure import Measure, Scored, mean, signed
from toa_exp.stats import bootstrap

log = logging.getLogger(__name__)


def score_preferences(
    comparisons: Sequence[Comparison],
    references: Path | None,
    *,
    expected: int = INSTRUCTIONS,
    known: bool = True,
) -> Scored:
    """Win rate over the baseline in per cent, its standard error, and the length-controlled one.

    `n` are the judged comparisons. Those without a preference, and instructions of the `expected`
    number that have no row, count as failed; the win rates are over the others, and the
    length-controlled one is what the regression on these says of all rows, as in the package. Outputs
    without a character that were judged are in the rates as judged, and count as failed too. Where
    instructions are missing, `lc_win_rate_by_row` is what the alpaca_eval package makes of the rows,
    which looks difficulties up by their places. Where instructions are not `known` for AlpacaEval's, all
    their 805 places stand for them; fewer have no length-controlled win rate.
    """
    in_order = comparisons
    comparisons = sorted(comparisons, key=lambda comparison: comparison.instruction)
    judged = [c for c in comparisons if c.preference is not None]
    absent = max(0, expected - len(comparisons))
    unjudged = len(comparisons) - len(judged) + absent
    if not judged:
        raise BadInput("no comparison has a preference; there is nothing to score")
    if unjudged:
        log.warning(
            "%d of %d comparisons have no judgement: they count as failed, and rates are over the other %d",
            unjudged,
            len(comparisons) + absent,
            len(judged),
        )
    empty = sum(c.length == 0 for c in judged)
    if empty:
        log.warning("%d outputs are empty: they count as failed, and rates have them as judged", empty)
    failed = unjudged + empty
    wins = np.array([won(c.preference) for c in judged])
    source = {"preference": "1..2", "draws": "half", "unjudged": "left_out", "empty": "as_judged"}
    measures = {
        "win_rate": mean(list(100.0 * wins), failed, signed("win_rate", **source), **_counts(wins)),
        "win_rate_se": _standard_error(wins, failed, signed("win_rate_se", **source)),
    }
    measures |= _length_controlled(in_order, references, failed, known, expected)
    rows = [
        {
            "id": c.instruction,
            "win": None if c.preference is None else won(c.preference),
            "failed": "no judgement" if c.preference is None else "empty" if c.length == 0 else None,
        }
        for c in in_order
    ]
    return Scored(measures, rows)


def won(preference: float | None) -> float:
    """A preference of 1 to 2 as a win of 0 to 1; 0 is a draw, as in AlpacaEval."""
    assert preference is not None
    return 0.5 if preference == 0 else preference - 1.0


def from_table(rows: Sequence[checks.Row]) -> list[Comparison]:
    """The comparisons of rows of instruction_id, len_baseline, len_model and preference."""
    found = []
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        instruction = checks.integer(row, "instruction_id", where)
        lengths = tuple(checks.integer(row, field, where) for field in ("len_baseline", "len_model"))
        if min(lengths) < 0:
            raise BadInput(f"{where}: lengths are {lengths}; a length is 0 or more")
        found.append(Comparison(_known(instruction, where), lengths[0], lengths[1], preference(row, where)))
    checks.unique([str(comparison.instruction) for comparison in found], "instruction_id")
    return found


def from_annotations(rows: Sequence[checks.Row], numbers: Mapping[str, int]) -> list[Comparison]:
    """The comparisons of AlpacaEval's annotations.json, whose instructions have these `numbers`."""
    instructions = [required(row, "instruction", number) for number, row in enumerate(rows, start=1)]
    checks.unique(instructions, "instruction")
    one_model(rows)
    found = []
    for number, (row, instruction) in enumerate(zip(rows, instructions, strict=True), start=1):
        where = f"annotation {number}"
        if instruction not in numbers:
            raise BadInput(f"{where}: none of the instructions that are evaluated is {instruction!r:.80}")
        baseline, output = (required(row, field, number, empty=True) for field in ("output_1", "output_2"))
        found.append(Comparison(numbers[instruction], len(baseline), len(output), preference(row, where)))
    return found


def one_model(rows: Sequence[checks.Row]) -> None:
    """Raises BadInput where annotations are of several baselines, models or judges."""
    for field in ("generator_1", "generator_2", "annotator"):
        names = sorted({str(row.get(field)) for row in rows})
        if len(names) > 1:
            raise BadInput(
                f"the annotations are of several {field}: {', '.join(names[:5])}; score each apart"
            )


def preference(row: checks.Row, where: str) -> float | None:
    """The preference of a row, None where the judge failed; raises BadInput for what is none."""
    value = checks.number(row, "preference", where)
    if value is not None and value != 0 and not 1 <= value <= 2:
        raise BadInput(
            f"{where}: preference={value:g}; it is from 1 (baseline) to 2 (model), or 0 for a draw"
        )
    return value


def _known(instruction: int, where: str) -> int:
    if not 0 <= instruction < INSTRUCTIONS:
        raise BadInput(f"{where}: instruction_id={instruction}; AlpacaEval has 0 to {INSTRUCTIONS - 1}")
    return instruction


def required(row: checks.Row, field: str, number: int, *, empty: bool = False) -> str:
    """The text of an annotation's field; raises BadInput where it has none."""
    value = checks.text(row, field, f"annotation {number}")
    if value is None or not (value or empty):
        raise BadInput(f"annotation {number} has no {field!r}; it has {', '.join(map(repr, row))}")
    return value


def _counts(wins: np.ndarray) -> dict[str, object]:
    n_wins, n_losses = int((wins > 0.5).sum()), int((wins < 0.5).sum())
    draws = len(wins) - n_wins - n_losses
    discrete = 100.0 * (n_wins + draws / 2) / len(wins)
    return {"n_wins": n_wins, "n_wins_base": n_losses, "n_draws": draws, "discrete_win_rate": discrete}


def _standard_error(wins: np.ndarray, failed: int, signature: str) -> Measure:
    def error(rows: np.ndarray) -> float:
        return float(100.0 * rows.std(ddof=1) / len(rows) ** 0.5)

    if len(wins) < 2:
        return Measure(None, None, len(wins), failed, signature)
    value, lower, upper = bootstrap(wins, error)
    return Measure(value, (lower, upper), len(wins), failed, signature)


def _length_controlled(
    comparisons: Sequence[Comparison], references: Path | None, failed: int, known: bool, expected: int
) -> dict[str, Measure]:
    if not known and expected != INSTRUCTIONS:
        return _without(
            len(comparisons),
            failed,
            f"the instructions are not AlpacaEval's, nor {INSTRUCTIONS}, so that their difficulty is unknown",
        )
    try:
        gamed = reference_file(references)
    except BadInput as error:
        if references is not None:
            raise
        return _without(len(comparisons), failed, str(error))
    names = {"lc_win_rate": False}
    if len(comparisons) < INSTRUCTIONS:
        names["lc_win_rate_by_row"] = True
        log.warning(
            "%d of AlpacaEval's %d instructions have no row. lc_win_rate looks their difficulty up by "
            "instruction; the alpaca_eval package does so by the row's place, which shifts it after a "
            "missing row: that is lc_win_rate_by_row",
            INSTRUCTIONS - len(comparisons),
            INSTRUCTIONS,
        )
    found = {}
    for name, by_row in names.items():
        try:
            made = length_controlled(comparisons, gamed, by_row=by_row)
        except BadInput as error:
            return _without(len(comparisons), failed, str(error))
        parts = dict(made.signature) if known else {**made.signature, "difficulty": "by_place_in_the_file"}
        found[name] = Measure(
            made.rate,
            made.interval,
            made.n,
            failed,
            signed(name, **parts),
            made.interval_by,
            {"standard_error": made.standard_error},
        )
    return found


def _without(n: int, failed: int, why: str) -> dict[str, Measure]:
    log.warning("no length-controlled win rate: %s", why)
    return {"lc_win_rate": Measure(None, None, n, failed, signed("lc_win_rate"), more={"error": why})}
