"""BLEU and chrF of a set of translations by sacrebleu, with interval and signature."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from toa_exp.errors import BadInput
from toa_exp.metrics import pooled
from toa_exp.scoring.measure import Measure
from toa_exp.stats import bootstrap

METRICS = ["bleu", "chrf"]
PAIR = re.compile(r"^([a-z]{2,3})-([a-z]{2,3})$")
_CODE = (  # of the languages of sacrebleu's test sets, and Dutch: sys_out.jsonl names no pair
    "(ar|bn|cs|de|el|en|es|et|fi|fr|gu|ha|he|hi|hr|hu|is|it|iu|ja|kk|km|ko|liv|lt|lv|nl|pl|ps|pt|ro|ru|"
    "sah|ta|tr|uk|xh|zh|zu)"
)
_IN_NAME = re.compile(rf"(?<![a-z]){_CODE}[-_]{_CODE}(?![a-z])")


def pair_in_name(path: Path) -> str | None:
    """The language pair that a file's name ends in, such as zh-en in wmt22.zh-en.jsonl.gz."""
    found = _IN_NAME.findall(path.name.partition(".jsonl")[0].removesuffix(".json"))
    return "-".join(found[-1]) if found else None


def target_of(pair: str) -> str:
    """The language that a pair translates into; raises BadInput for what is no pair."""
    match = PAIR.match(pair)
    if match is None:
        raise BadInput(f"task.pair={pair}: a language pair reads like de-en, source first")
    return match[2]


def measures(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], target: str | None, failed: int
) -> dict[str, Measure]:
    """`bleu` and `chrf` (0 to 100) of hypotheses against the references of each.

    A missing or empty hypothesis is scored as an empty text; `failed` is how many there are. The
    interval resamples segments.
    """
    import numpy as np

    streams = [list(stream) for stream in zip(*references, strict=True)]
    found = {}
    for name in METRICS:
        metric = pooled.sacrebleu_metric(name, target)
        rows = np.asarray(metric._extract_corpus_statistics(hypotheses, streams), dtype=np.float64)
        value, lower, upper = bootstrap(rows, getattr(pooled, name))
        signature = metric.get_signature().format()
        found[name] = Measure(value, (lower, upper), len(hypotheses), failed, signature)
    return found
