"""Joins AlpacaEval's outputs with their annotations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from toa_exp.build import build
from toa_exp.errors import BadInput
from toa_exp.metrics.length_control import INSTRUCTIONS, instruction_number
from toa_exp.scoring import rows as checks
from toa_exp.scoring.measure import Scored
from toa_exp.scoring.preferences import from_annotations, required, score_preferences

log = logging.getLogger(__name__)


def score_annotations(
    annotations: Sequence[checks.Row],
    outputs: Sequence[checks.Row] | None,
    config: DictConfig,
    references: Path | None,
) -> Scored:
    """Win rates of annotations, which must be those of `outputs` where these are given.

    An output without annotation counts as failed. Raises BadInput where an annotation is of another
    output or of no output.
    """
    texts = None if outputs is None else _texts(outputs)
    if texts is not None:
        for number, row in enumerate(annotations, start=1):
            _check(row, number, texts)
    evaluated = _evaluated(annotations, texts, config)
    numbers, known = _numbers(evaluated)
    # Annotations alone do not say which instructions have none.
    all_of_them = texts is not None or config.task.get("path") is not None
    expected = len(evaluated) if all_of_them or not known else INSTRUCTIONS
    return score_preferences(
        from_annotations(annotations, numbers), references, expected=expected, known=known
    )


def _evaluated(
    annotations: Sequence[checks.Row], texts: Mapping[str, str] | None, config: DictConfig
) -> list[str]:
    """The instructions that are evaluated: of the task's own file, else of the outputs or annotations."""
    if config.task.get("path") is not None:
        return [problem.prompt for problem in build(config.task, "task").problems()]
    if texts is not None:
        return list(texts)
    return [str(row.get("instruction")) for row in annotations]


def _numbers(instructions: Sequence[str]) -> tuple[dict[str, int], bool]:
    """The numbers of instructions, and whether they are AlpacaEval's; if not, they are their places."""
    known = {instruction: instruction_number(instruction) for instruction in instructions}
    strangers = [instruction for instruction, number in known.items() if number is None]
    if not strangers:
        return {instruction: number for instruction, number in known.items() if number is not None}, True
    log.warning(
        "%d of %d instructions are none of AlpacaEval's, such as %.80r: their places in the file stand for "
        "their numbers, which decide their difficulty",
        len(strangers),
        len(instructions),
        strangers[0],
    )
    return {instruction: number for number, instruction in enumerate(instructions)}, False


def _texts(outputs: Sequence[checks.Row]) -> dict[str, str]:
    """The outputs by their instruction."""
    found = {}
    names = []
    for number, row in enumerate(outputs, start=1):
        instruction = checks.text(row, "instruction", f"output {number}")
        if not instruction:
            raise BadInput(f"output {number} has no instruction")
        names.append(instruction)
        found[instruction] = checks.text(row, "output", f"output {number}") or ""
    checks.unique(names, "instruction")
    generators = sorted({str(row.get("generator")) for row in outputs})
    if len(generators) > 1:
        raise BadInput(
            f"the outputs are of several generators: {', '.join(generators[:5])}; score each apart"
        )
    return found


def _check(row: checks.Row, number: int, texts: Mapping[str, str]) -> None:
    instruction = required(row, "instruction", number)
    if instruction not in texts:
        raise BadInput(f"there is an annotation, but no output, of instruction {instruction!r:.80}")
    output = checks.text(row, "output_2", f"annotation {number}")
    if output is not None and output.strip() != texts[instruction].strip():
        raise BadInput(
            f"the annotation of instruction {instruction!r:.80} is of another output: these annotations "
            f"were not made of these outputs"
        )
