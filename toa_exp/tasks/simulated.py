"""Problems without content, any number of them, for simulated agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toa_exp.core import Problem
from toa_exp.draws import Message, digest, encode
from toa_exp.errors import BadInput
from toa_exp.metrics.answers import ExactMatch, final_answer, normalise


class SimulatedProblems:
    """`problems` problems, each with a number as its answer; the same numbers whatever their count.

    The prompts are as short as a message can be: simulated agents read the drafts' quality, not words.
    """

    def __init__(self, *, problems: int) -> None:
        if problems < 1:
            raise BadInput(f"task.problems={problems}: give a number of problems, 1 or more")
        self._problems = problems
        self._judge = ExactMatch()

    def count(self) -> int:
        """How many problems there are."""
        return self._problems

    def problems(self) -> Iterator[Problem]:
        """The problems, numbered from 0."""
        for number in range(self._problems):
            answer = int.from_bytes(digest(encode(f"answer {number}"))[:2], "little")
            yield Problem(str(number), f"Problem {number}", str(answer))

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[Message]:
        """One message: the prompt and the drafts."""
        return [{"role": "user", "content": "\n\n".join([problem.prompt, *drafts])}]

    async def score(self, problem: Problem, text: str) -> Mapping[str, float]:
        """Accuracy: 1.0 where the final answer is the problem's, else 0.0."""
        return {"accuracy": float(await self._judge.correct(problem.reference, text) or False)}

    def fingerprint(self) -> Mapping[str, Any]:
        """The judge."""
        return self._judge.fingerprint()

    def final_answer(self, text: str) -> str | None:
        """The stated final answer, normalised."""
        answer = final_answer(text)
        return None if answer is None else normalise(answer)

    async def close(self) -> None:
        """Nothing is held."""
