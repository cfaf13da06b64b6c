"""Scores translations that come with their references: rows of id, src, refs and hyps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toa_exp.errors import BadInput, choose
from toa_exp.metrics.translation import measures, pair_in_name, target_of
from toa_exp.scoring import rows as checks
from toa_exp.scoring.languages import has_kana, one_language
from toa_exp.scoring.measure import Output, Scored
from toa_exp.scoring.segments import highest

log = logging.getLogger(__name__)
_LANGUAGES = ("pair", "langpair", "lp", "lang", "language", "src_lang", "tgt_lang")
_OF_SCRIPT = {"CJK": "zh", "HANGUL": "ko"}
_COPY = 0.9  # a share of texts alike, from which one reference is a copy of another


def score_systems(
    rows: Sequence[checks.Row],
    path: Path,
    *,
    system: str | None,
    reference: str | Sequence[str] | None,
    pair: str | None,
    absent: int | None = None,
) -> Scored:
    """BLEU and chrF of one system's `hyps` against one of the `refs`, several, or `all` of them.

    Without `reference` it is all but those that are near copies of another one.

    The pair, which decides the tokenizer, is given, or read off the file's name, or told from the
    script of the references. Segments that are `absent` from the file (None: the gaps in its ids), and
    empty hypotheses of segments whose reference is not empty, count as failed.
    """
    identifiers = checks.identifiers(rows)
    name = _system(rows, system)
    labels = _labels(rows, reference)
    references = [[_reference(row, label, n) for label in labels] for n, row in enumerate(rows, start=1)]
    hypotheses = [_hypothesis(row, name, n) for n, row in enumerate(rows, start=1)]
    target = _target(rows, references, path, pair)
    lost = [
        not h.strip() and any(r.strip() for r in rs) for h, rs in zip(hypotheses, references, strict=True)
    ]
    if absent is None:
        absent = highest(identifiers) - len(rows)
    _say(lost, absent)
    other = [
        checks.script(h) not in (None, checks.script(rs[0]))
        for h, rs in zip(hypotheses, references, strict=True)
    ]
    if sum(other) > len(rows) / 20:
        log.warning("%d of %d hypotheses are in another script than their reference", sum(other), len(rows))
    decided = [
        {"id": i, "failed": "empty" if bad else None} for i, bad in zip(identifiers, lost, strict=True)
    ]
    failed = sum(lost) + absent
    outputs = [
        Output(i, checks.text(row, "src", f"row {i!r}") or "", h, rs)
        for i, row, h, rs in zip(identifiers, rows, hypotheses, references, strict=True)
    ]
    return Scored(measures(hypotheses, references, target, failed), decided, outputs, failed)


def _system(rows: Sequence[checks.Row], system: str | None) -> str:
    names = list(dict.fromkeys(name for row in rows for name in _mapping(row, "hyps")))
    if system is None:
        if len(names) != 1:
            raise BadInput(f"the file has {len(names)} systems; give system=<one of {', '.join(names)}>")
        return names[0]
    if system not in names:
        raise choose("system", system, names)
    return system


def _labels(rows: Sequence[checks.Row], reference: str | Sequence[str] | None) -> list[str]:
    """The labels of the references to score against; None is every one that is no copy."""
    labels = list(dict.fromkeys(label for row in rows for label in _mapping(row, "refs")))
    if not labels:
        raise BadInput("the file has no references")
    if reference is None:
        return _without_copies(rows, labels)
    if reference == "all":
        return labels
    chosen = reference.split(",") if isinstance(reference, str) else [str(label) for label in reference]
    for label in chosen:
        if label not in labels:
            raise choose("reference", label, labels)
    return chosen


def _without_copies(rows: Sequence[checks.Row], labels: Sequence[str]) -> list[str]:
    """Of references that are nearly the same the first by name, in the order of `labels`."""
    kept: list[str] = []
    for label in sorted(labels):
        alike = next((other for other in kept if _alike(rows, label, other)), None)
        if alike is None:
            kept.append(label)
        else:
            log.warning("reference %r is nearly the same as %r, so it is not used; reference=all takes both",
                        label, alike)  # fmt: skip
    return [label for label in labels if label in kept]


def _alike(rows: Sequence[checks.Row], label: str, other: str) -> bool:
    texts = [_mapping(row, "refs") for row in rows]
    alike = sum(1 for given in texts if given.get(label) == given.get(other))
    return alike >= _COPY * len(rows)


def _mapping(row: checks.Row, field: str) -> Mapping[str, Any]:
    value = row.get(field)
    if not isinstance(value, dict):
        raise BadInput(f"row {row.get('id')!r}: {field!r} is no object of texts by name")
    return value


def _reference(row: checks.Row, label: str, number: int) -> str:
    found = checks.text(_mapping(row, "refs"), label, f"row {number}, refs")
    if found is None:
        raise BadInput(f"row {number} has no reference {label!r}; choose one that all rows have: reference=")
    return found


def _hypothesis(row: checks.Row, name: str, number: int) -> str:
    hypotheses = _mapping(row, "hyps")
    if name not in hypotheses:
        raise BadInput(f"row {number} has no output of {name!r}, and other rows have; null says it failed")
    return checks.text(hypotheses, name, f"row {number}, hyps") or ""


def _target(
    rows: Sequence[checks.Row], references: Sequence[Sequence[str]], path: Path, pair: str | None
) -> str | None:
    for field in _LANGUAGES:
        if len(found := {str(row.get(field)) for row in rows}) > 1:
            raise BadInput(
                f"the rows are of several languages ({field}: {', '.join(sorted(found))}); "
                f"score each pair on its own"
            )
    sources = [str(row.get("src") or "") for row in rows]
    checks.one_script(sources, "sources")
    one_language(sources, "sources")
    scripts = [checks.one_script(texts, "references") for texts in zip(*references, strict=True)]
    for texts in zip(*references, strict=True):
        one_language(texts, "references")
    named = pair_in_name(path)
    if pair and named and pair != named:
        raise BadInput(
            f"task.pair={pair}, but the file's name says {named}; rename it, or give the right pair"
        )
    if pair or named:
        return target_of(str(pair or named))
    guess = _OF_SCRIPT.get(str(scripts[0]))
    if guess == "zh" and sum(has_kana(given[0]) for given in references) > len(rows) / 2:
        guess = "ja"
    if guess:
        log.warning("no language pair is given: from the script the target is taken for %r; "
                    "task.pair=<source>-<target> says it", guess)  # fmt: skip
    return guess


def _say(lost: Sequence[bool], absent: int) -> None:
    if any(lost):
        log.warning("%d hypotheses are empty: scored as such, and counted as failed", sum(lost))
    if absent:
        log.warning("%d segments of the test set have no row: counted as failed", absent)
