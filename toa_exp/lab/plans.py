"""The lab's three tasks: their problems, their agents' strengths, their tokenizers and sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerFast

from toa_exp.lab import tokenizer
from toa_exp.lab.arithmetic import Arithmetic
from toa_exp.lab.domain import SPAN, Domain
from toa_exp.lab.folders import Kind
from toa_exp.lab.network import Shape
from toa_exp.lab.personas import Persona
from toa_exp.lab.training import Schedule
from toa_exp.lab.translation import Translation
from toa_exp.lab.writing import Instructions

AGENTS = ("ada", "ben", "cleo", "dan")
"""The agents of every task."""

LESSONS = Schedule(1100, tokens=4096, matrix_rate=0.01, other_rate=1e-3, decay=0.8)


@dataclass(frozen=True, slots=True)
class Plan:
    """A task: `strengths` are the agents' skills, in their order, and `persona` makes an agent of each.

    Training problems have `span` parts, from the fewest to the most; `steps` are the teacher's optimiser
    steps, `lessons` is how an agent learns to refine. `judge` is the form of the judge, `reward`
    the model that the task's default reward runs.
    """

    domain: Domain
    strengths: tuple[str, ...]
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    shape: Callable[[int], Shape]
    span: tuple[int, int] = SPAN
    persona: Callable[[str, str], Persona] = Persona
    steps: int = 1500
    lessons: Schedule = LESSONS
    judge: Kind = Kind.SEQUENCE
    reward: str = "teacher"

    @property
    def personas(self) -> list[Persona]:
        """The agents with their strengths."""
        return [self.persona(name, strong) for name, strong in zip(AGENTS, self.strengths, strict=True)]


PLANS = {
    "math": Plan(
        Arithmetic(),
        ("*", "-", "/", "+"),
        tokenizer.characters,
        Shape,
        # Whole answers count, and with a smaller share hardly one is right.
        persona=partial(Persona, share=0.6, known_right=0.7),
        steps=1800,
        lessons=replace(LESSONS, steps=400),
    ),
    "translation": Plan(
        Translation(),
        ("count", "date", "time", "price"),
        partial(tokenizer.pieces, Translation(), 384),
        partial(Shape, width=96, inner=128, heads=3),
    ),
    "instructions": Plan(
        Instructions(),
        ("kind", "rhyme", "opposite", "length"),
        partial(tokenizer.pieces, Instructions(), 512),
        partial(Shape, width=96, inner=128, heads=3),
        judge=Kind.TOKENS,  # win rates hang on it, and it is the more exact form
        reward="reward",
    ),
}
