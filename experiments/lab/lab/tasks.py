"""The tasks of the lab: their problems, their agents' strengths and their tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerFast

from lab import tokenizer
from lab.domain import Domain
from lab.personas import Persona
from lab.problems_instructions import Instructions
from lab.problems_math import Arithmetic
from lab.problems_translation import Translation


@dataclass(frozen=True, slots=True)
class Plan:
    """A task: `span` is the fewest and the most parts in training, `parts` the number that is reported.

    `effort` scales the number of training steps.
    """

    domain: Domain
    personas: tuple[Persona, ...]
    span: tuple[int, int]
    parts: int
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    effort: float = 1.0


PLANS = {
    "math": Plan(
        Arithmetic(),
        (Persona("ada", "*"), Persona("ben", "-"), Persona("cleo", "/"), Persona("dan", "+")),
        (2, 8),
        6,
        tokenizer.characters,
    ),
    "translation": Plan(
        Translation(),
        (
            Persona("anna", "count"),
            Persona("bruno", "date"),
            Persona("clara", "time"),
            Persona("david", "price"),
        ),
        (2, 8),
        6,
        partial(tokenizer.pieces, Translation(), 384),
        effort=0.5,
    ),
    "instructions": Plan(
        Instructions(),
        (
            Persona("amos", "kind"),
            Persona("bella", "rhyme"),
            Persona("carl", "opposite"),
            Persona("dora", "length"),
        ),
        (2, 8),
        6,
        partial(tokenizer.pieces, Instructions(), 512),
        effort=0.5,
    ),
}
