"""Joins AlpacaEval's outputs with their annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from toa_exp.build import build
from toa_exp.errors import BadInput
from toa_exp.metrics.length_control import INSTRUCTIONS
from toa_exp.scoring import rows as checks
from toa_exp.scoring.measure import Scored
from toa_exp.scoring.preferences import from_annotations, score_preferences


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
    numbers = _numbers(list(texts) if texts is not None else None, config)
    comparisons = from_annotations(annotations, numbers)
    if texts is not None:
        for row in annotations:
            _check(row, texts)
    expected = INSTRUCTIONS if numbers is None else len(numbers)
    return score_preferences(comparisons, references, expected=expected)


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


def _numbers(instructions: Sequence[str] | None, config: DictConfig) -> dict[str, int] | None:
    """The places of instructions: of the task's own file, else of the outputs where they are all."""
    if config.task.get("path") is not None:
        task = build(config.task, "task")
        return {problem.prompt: number for number, problem in enumerate(task.problems())}
    if instructions is not None and len(instructions) == INSTRUCTIONS:
        return {instruction: number for number, instruction in enumerate(instructions)}
    return None


def _check(row: checks.Row, texts: dict[str, str]) -> None:
    instruction = str(row["instruction"])
    if instruction not in texts:
        raise BadInput(f"there is an annotation, but no output, of instruction {instruction!r:.80}")
    if row["output_2"].strip() != texts[instruction].strip():
        raise BadInput(
            f"the annotation of instruction {instruction!r:.80} is of another output: these annotations "
            f"were not made of these outputs"
        )
