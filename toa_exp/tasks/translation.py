"""Translation of one language pair: a WMT test set by sacrebleu's index, or a file of your own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_exp.core import Problem
from toa_exp.draws import Message
from toa_exp.errors import BadInput, choose
from toa_exp.metrics.base import Metric
from toa_exp.metrics.pooled import sacrebleu_metric, statistics
from toa_exp.metrics.translation import METRICS, pair_in_name, target_of
from toa_exp.tasks.base import Prompts
from toa_exp.tasks.part import Part
from toa_exp.tasks.source import Row, rows
from toa_exp.tasks.testsets import segments


class Translation:
    """Segments to translate, with one reference or several; metrics are corpus BLEU and chrF.

    Segments come from `testset` of sacrebleu's index (downloaded by it to ~/.sacrebleu), or from the
    file `path` with rows of id, src and refs (texts by label). `reference` is a label, or a list of
    them; None is the test set's own choice, in a file all. `pair` reads like de-en; its target
    decides the tokenizer. `languages` names languages by their code for the prompts. `limit` keeps
    the first segments and `ids` those named, where pairs have their own by pair.
    """

    forms = ("hypotheses", "outputs")

    def __init__(
        self,
        *,
        pair: str,
        prompts: Mapping[str, Any],
        languages: Mapping[str, str],
        testset: str | None = None,
        path: str | None = None,
        reference: str | Sequence[str] | None = None,
        limit: int | None = None,
        ids: Mapping[str, Sequence[str | int]] | Sequence[str | int] | str | int | None = None,
    ) -> None:
        if isinstance(ids, Mapping):
            if pair not in ids:
                raise choose("task.pair (task.ids has segments by pair)", pair, list(ids))
            ids = ids[pair]
        self._part = Part(limit, ids, "segment")
        self._target = target_of(pair)
        source = pair.partition("-")[0]
        for code in (source, self._target):
            if code not in languages:
                raise choose("language in task.pair", code, sorted(languages))
        self._names = {"source": languages[source], "target": languages[self._target]}
        self._pair, self._testset, self._path = pair, testset, path
        self._labels = [reference] if isinstance(reference, str) else reference
        self._prompts = Prompts(**prompts)
        self.empty: dict[str, Problem] = {}
        self.pools = {name: f"toa_exp.metrics.pooled.{name}" for name in METRICS}

    def count(self) -> int:
        """How many segments there are, after checking every one."""
        sacrebleu_metric("bleu", self._target)
        named = pair_in_name(Path(self._path)) if self._path else None
        if named and named != self._pair:
            raise BadInput(f"task.pair={self._pair}, but the name of {self._path} says {named}")
        return sum(1 for _ in self._part.checked(self.problems(), self._where()))

    def problems(self) -> Iterator[Problem]:
        """The segments in the order of the data; those without a source are left out, in `empty`."""
        return self._part.take(self._filled())

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[Message]:
        """The chat messages of a template of the task's prompts."""
        return self._prompts.render(problem, template, drafts)

    async def score(self, problem: Problem, text: str) -> Mapping[str, Metric]:
        """What BLEU and chrF count in the text, without space around it."""
        references = problem.reference
        return {name: statistics(name, text.strip(), references, self._target) for name in METRICS}

    def fingerprint(self) -> Mapping[str, Any]:
        """The signatures of the metrics."""
        return self.signatures(-1 if self._labels is None else len(self._labels))

    def signatures(self, references: int) -> Mapping[str, str]:
        """sacrebleu's signature of each metric, of segments with so many references each, -1 for several."""
        found = {}
        for name in METRICS:
            metric = sacrebleu_metric(name, self._target)
            metric.num_refs = references
            found[name] = metric.get_signature().format()
        return found

    def final_answer(self, text: str) -> str | None:
        """The whole translation."""
        return text.strip() or None

    async def close(self) -> None:
        """Nothing is held."""

    def _rows(self) -> Iterator[Row]:
        if self._path is not None or self._testset is None:
            return rows(self._path, None)
        return segments(self._testset, self._pair)

    def _filled(self) -> Iterator[Problem]:
        for number, row in enumerate(self._rows()):
            problem = self._problem(number, row)
            if problem.prompt:
                yield problem
            elif self._part.names(problem.id):
                self.empty[problem.id] = problem

    def _where(self) -> str:
        return self._path or f"{self._testset} {self._pair}"

    def _problem(self, number: int, row: Row) -> Problem:
        where = f"{self._where()}, row {number + 1}"
        source, references = row.get("src"), row.get("refs")
        if not isinstance(source, str) or not isinstance(references, dict) or not references:
            raise BadInput(
                f"{where}: give 'src', a text, and 'refs', texts by label; it has {', '.join(row)}"
            )
        labels = list(references) if self._labels is None else self._labels
        for label in labels:
            if label not in references:
                raise choose("reference", label, list(references))
            if not isinstance(references[label], str):
                raise BadInput(
                    f"{where}: reference {label!r} is {references[label]!r:.60}; give a text, or choose "
                    f"another one: task.reference=<label>"
                )
        chosen = [references[label] for label in labels]
        return Problem(
            str(row.get("id", number)), source.strip(), chosen, {"pair": self._pair, **self._names}
        )
