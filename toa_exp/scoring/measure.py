"""What scoring gives: metrics that say how they were made, and decisions row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toa_exp import __version__
from toa_exp.stats import LEVEL, RESAMPLES, SEED

BOOTSTRAP = f"bootstrap{LEVEL:.0%},resamples={RESAMPLES},seed={SEED}"
"""How intervals are made where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of a set of outputs, in the units of its field.

    `n` are the outputs that the value is over and `failed` those that have none or could not be
    judged; whether these are among `n` is said by the signature. `more` are further numbers by name.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int
    failed: int
    signature: str
    interval_by: str = BOOTSTRAP
    more: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The measure as JSON has it; numbers are finite."""
        record: dict[str, Any] = {
            "value": _finite(self.value),
            "interval": None if self.interval is None else [_finite(bound) for bound in self.interval],
            "n": self.n,
            "failed": self.failed,
            "signature": self.signature,
            "interval_by": None if self.interval is None else self.interval_by,
        }
        return record | dict(self.more)


@dataclass(frozen=True, slots=True)
class Output:
    """An output with what it answers, as further metrics read it; `id` names it in errors."""

    id: str
    source: str
    text: str
    references: Sequence[str]


@dataclass(frozen=True, slots=True)
class Scored:
    """The metrics of a file by name, and its rows as they were judged, for `rows=<file>`.

    `outputs` are what further metrics may be had of; `failed` of all outputs have no text, or are absent.
    """

    measures: Mapping[str, Measure]
    rows: Sequence[Mapping[str, Any]] = ()
    outputs: Sequence[Output] = ()
    failed: int = 0


def signed(metric: str, **parts: object) -> str:
    """A signature after the example of sacrebleu's: `metric|key:value|...|toa-exp:version`."""
    return "|".join([metric, *(f"{key}:{value}" for key, value in parts.items()), f"toa-exp:{__version__}"])


def mean(values: Sequence[float], failed: int, signature: str, **more: Any) -> Measure:
    """The mean of one number an output, with its bootstrap interval; their order is of no account."""
    import numpy as np

    from toa_exp.stats import bootstrap_means

    table = np.sort(np.asarray(values, dtype=np.float64)).reshape(-1, 1)
    (value,), (lower,), (upper,) = bootstrap_means(table)
    return Measure(float(value), (float(lower), float(upper)), len(values), failed, signature, more=more)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
