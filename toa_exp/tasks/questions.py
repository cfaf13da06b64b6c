"""Questions with a reference answer, from any file or hub data set: a YAML makes it a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toa_exp.core import Problem
from toa_exp.draws import Message
from toa_exp.errors import BadInput
from toa_exp.metrics.answers import final_answer, normalise
from toa_exp.metrics.base import Judge
from toa_exp.tasks.base import Prompts
from toa_exp.tasks.part import Part
from toa_exp.tasks.source import Row, rows


class Questions:
    """A question-answering task.

    `fields` names the row fields of `id` (rows without it are numbered from 0), `prompt` and
    `reference`; all others go to a problem's meta. A field may be a path, `turns.0.content`, and
    several may be listed, of which a row's first is taken. Of the reference only group 1 of
    `reference_pattern` is kept. `limit` keeps the first problems and `ids` those named, in a list or
    a file. `judge` decides whether an answer equals the reference (metric `accuracy`); where no row
    has a reference there is no metric.
    """

    forms: tuple[str, ...] = ("pairs", "counts", "outputs")

    def __init__(
        self,
        *,
        prompts: Mapping[str, Any],
        fields: Mapping[str, str | Sequence[str] | None],
        judge: Judge | None = None,
        path: str | None = None,
        hub: Mapping[str, Any] | None = None,
        reference_pattern: str | None = None,
        limit: int | None = None,
        ids: Sequence[str | int] | str | int | None = None,
    ) -> None:
        self._part = Part(limit, ids)
        self._prompts = Prompts(**prompts)
        self._fields = fields
        self._judge = judge
        self._path = path
        self._hub = dict(hub) if hub else None
        self._pattern = re.compile(reference_pattern) if reference_pattern else None

    def count(self) -> int:
        """How many problems there are, after checking every row of the data."""
        taken = self._part.checked(self.problems(), self._where())
        referenced = [problem.reference is not None for problem in taken]
        if any(referenced) and not all(referenced):
            raise BadInput(
                f"{self._where()}: {referenced.count(False)} of {len(referenced)} problems have no "
                f"{self._fields['reference']!r}; give it to all of them or to none"
            )
        return len(referenced)

    def problems(self) -> Iterator[Problem]:
        """The problems in the order of the data."""
        read = enumerate(rows(self._path, self._hub))
        return self._part.take(self._problem(number, row) for number, row in read)

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[Message]:
        """The chat messages of a template of the task's prompts."""
        return self._prompts.render(problem, template, drafts)

    async def score(self, problem: Problem, text: str) -> Mapping[str, float]:
        """Accuracy: 1.0 where the text's final answer equals the reference, else 0.0."""
        if problem.reference is None or self._judge is None:
            return {}
        return {"accuracy": float(await self._judge.correct(str(problem.reference), text) or False)}

    async def verified(self, problem: Problem, text: str) -> bool:
        """Whether the judge could tell if the text is right; what it could not counts as wrong."""
        if problem.reference is None or self._judge is None:
            return True
        return await self._judge.correct(str(problem.reference), text) is not None

    def fingerprint(self) -> Mapping[str, Any]:
        """The judge."""
        return {} if self._judge is None else self._judge.fingerprint()

    def final_answer(self, text: str) -> str | None:
        """The stated final answer, without differences of case, spacing and number format."""
        answer = final_answer(text)
        return None if answer is None else normalise(answer)

    async def ballots(self, texts: Sequence[str]) -> list[str | None]:
        """What each text votes for, as the judge reads and compares answers; None without an answer."""
        if self._judge is None:
            return [self.final_answer(text) for text in texts]
        return await self._judge.ballots(texts)

    async def close(self) -> None:
        """Stop the judge."""
        if self._judge is not None:
            await self._judge.close()

    def _where(self) -> str:
        return self._path or str((self._hub or {}).get("path"))

    def _problem(self, number: int, row: Row) -> Problem:
        fields = self._fields
        identifier, prompt, reference = (
            field(row, fields.get(name)) for name in ("id", "prompt", "reference")
        )
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadInput(
                f"{self._where()}, row {number + 1}: no text in field {fields['prompt']!r}; it has "
                f"{', '.join(map(repr, row)) or 'none'}. Name the fields with task.fields.prompt=<field>"
            )
        if self._pattern is not None and reference is not None:
            match = self._pattern.search(str(reference))
            if match is None:
                raise BadInput(
                    f"{self._where()}, row {number + 1}: {fields['reference']!r} does not match "
                    f"task.reference_pattern={self._pattern.pattern!r}"
                )
            reference = match[1].strip()
        used = {str(name) for names in fields.values() for name in _names(names)}
        meta = {key: value for key, value in row.items() if key not in used}
        return Problem(str(number if identifier is None else identifier), prompt, reference, meta)


def _names(names: str | Sequence[str] | None) -> Sequence[str]:
    return [names] if isinstance(names, str) else names or []


def field(row: Row, names: str | Sequence[str] | None) -> Any:
    """What the first of the named fields holds that the row has; None without any."""
    for name in _names(names):
        value: Any = row
        for part in [name] if name in row else name.split("."):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
