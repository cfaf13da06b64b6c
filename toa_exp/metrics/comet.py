"""COMET, CometKiwi and XCOMET as metrics: the mean over sentences of what the model gives each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from toa_exp.comet.scorer import Fields, Scorer, Settings
from toa_exp.errors import BadInput
from toa_exp.metrics.base import Metric
from toa_exp.metrics.of_run import Answered
from toa_exp.scoring.measure import Measure, Output, mean, signed
from toa_exp.tasks.base import references_of


class Comet:
    """The metric `name`, higher is better, most scores from 0 to 1; the prompt is the source.

    The fields are those of `comet.scorer.Settings`. A model that reads a reference reads one:
    `reference` says which of several, from 0. Raises BadInput as `comet.scorer.Scorer` does.
    """

    needs: tuple[str, ...] = ()
    pools: Mapping[str, str] = {}

    def __init__(self, *, name: str, reference: int | None = None, **settings: Unpack[Fields]) -> None:
        self.name = name
        self._reference = reference
        self._model = str(settings["model"])
        self._scorer = Scorer(Settings(**settings), "metric")

    def fingerprint(self) -> Mapping[str, Any]:
        """The model, unbabel-comet's version, the number format, and which reference, where one is chosen."""
        chosen = {} if self._reference is None else {"reference": self._reference}
        return {**self._scorer.fingerprint(), **chosen}

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The score of each answer."""
        given = [Output(a.problem.id, a.problem.prompt, a.text, references_of(a.problem)) for a in answers]
        return [{self.name: score} for score in await self.scores(given)]

    async def scores(self, given: Sequence[Output]) -> list[float]:
        """The score of each translation; equal ones are scored once.

        Raises BadInput for one that lacks the reference that the model needs, or has several and none is
        chosen; else what `Scorer.score` raises.
        """
        chosen = [self._chosen(one) for one in given]
        if len({reference is None for reference in chosen}) > 1:
            lacking = next(one.id for one, reference in zip(given, chosen, strict=True) if reference is None)
            raise BadInput(f"{self.name}: {lacking!r} has no reference, and others have: all or none")
        rows = [(one.source, one.text, reference) for one, reference in zip(given, chosen, strict=True)]
        different = list(dict.fromkeys(rows))
        known = dict(zip(different, await self._scorer.score_all(different), strict=True))
        return [known[row].score for row in rows]

    async def measured(self, given: Sequence[Output], failed: int) -> tuple[Measure, list[float]]:
        """The mean with its interval over sentences, and the score of each; `failed` are among them."""
        scores = await self.scores(given)
        signature = signed(self.name, **self.fingerprint(), nrefs=self._read(given), failed="scored_as_empty")
        return mean(scores, failed, signature), scores

    async def close(self) -> None:
        """End the workers."""
        await self._scorer.close()

    def _read(self, given: Sequence[Output]) -> int:
        """How many references are read of each."""
        return int(any(self._chosen(one) is not None for one in given))

    def _chosen(self, one: Output) -> str | None:
        """The reference that is read."""
        checkpoint = self._scorer.checkpoint
        if not checkpoint.takes_reference:
            return None
        count = len(one.references)
        if self._reference is not None and not 0 <= self._reference < count:
            raise BadInput(
                f"metric.reference={self._reference}: {one.id!r} has {count} references, counted from 0"
            )
        if self._reference is None and count > 1:
            raise BadInput(
                f"{self.name}: {one.id!r} has {count} references, and {self._model} reads one; give "
                f"metric.reference=<0 to {count - 1}>, or where references have labels reference=<label>"
            )
        found = one.references[self._reference or 0] if count else ""
        if found.strip():
            return found
        if checkpoint.needs_reference:
            raise BadInput(
                f"{self.name}: {self._model} reads a reference, and {one.id!r} has none; give one, or "
                "take metric=cometkiwi, which needs none"
            )
        return None
