"""Instructions without a right answer, whose answers a judge compares with a baseline's."""

from __future__ import annotations

from toa_exp.tasks.questions import Questions


class AlpacaEval(Questions):
    """AlpacaEval's instructions; `toa-exp score` takes its outputs, annotations and preferences."""

    forms = ("annotations", "model_outputs", "preferences", "outputs")


class ArenaHard(Questions):
    """Arena-Hard's questions; `toa-exp score` takes its battles and judgments."""

    forms = ("battles", "judgments", "games", "outputs")
