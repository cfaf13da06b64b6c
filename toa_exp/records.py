"""How a run says what it was: config.yaml, its signature, and the printed curve."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp import __version__
from toa_exp.curves import Row, metrics_of
from toa_exp.stats import LEVEL, RESAMPLES, SEED

log = logging.getLogger(__name__)

# What may differ between two runs of the same results.
_IMMATERIAL = ("concurrency", "retries", "backoff", "tracking", "sweep_keys", "results", "store")


def record(config: DictConfig, choices: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The resolved configuration with what it was run by, under `run`, as config.yaml has it."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    run = {
        "version": __version__,
        **{part: names[part] for part in ("experiment", "task", "ensemble", "method")},
        **{group: str(choices[group]) for group in ("selection", "reward", "engine")},
    }
    return {"run": run, **{str(key): value for key, value in values.items()}}


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write config.yaml; where it replaces that of another configuration, log the differences."""
    if path.is_file():
        before: Any = OmegaConf.to_container(OmegaConf.load(path))
        changes = [
            f"{key} {old!r} -> {new!r}"
            for key, (old, new) in _differences(_flat(before), _flat(values)).items()
            if not key.startswith(_IMMATERIAL)
        ]
        if changes:
            log.warning(
                "%s held results of another configuration, which these replace (its draws stay in the "
                "store; name runs apart with experiment=<name>): %s",
                path.parent,
                "; ".join(changes),
            )
    OmegaConf.save(OmegaConf.create(dict(values)), path)


def signature(values: Mapping[str, Any], problems: int, failed: int) -> str:
    """How numbers were made, in one line, after the example of sacrebleu's signatures."""
    run = values["run"]
    parts = {
        **{part: run[part] for part in ("task", "ensemble", "method", "selection", "reward", "engine")},
        "seed": values["seed"],
        "flops": values["flops"],
        "n": problems,
        "failed": failed,
        "interval": f"bootstrap{LEVEL:.0%},resamples={RESAMPLES},seed={SEED}",
        "toa-exp": run["version"],
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def table(rows: Sequence[Row], values: Mapping[str, Any], folder: Path) -> str:
    """The curve as text, with its signature and where it is stored."""
    metrics = metrics_of(rows)
    heads = ["budget", "samples", "tokens", "FLOPs", *metrics]
    lines = [[_cell(row, head) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [heads, *lines]
    ]
    problems = max((row["problems"] for row in rows), default=0)
    failed = max((row["failed"] for row in rows), default=0)
    return "\n".join([*text, signature(values, problems, failed), f"written to {folder}", ""])


def _cell(row: Row, head: str) -> str:
    if not row["problems"]:
        return f"{row['budget']:g}" if head == "budget" else "-"
    if head == "tokens":
        return f"{row['prompt_tokens'] + row['completion_tokens']:.0f}"
    if head == "FLOPs":
        return f"{row['flops']:.3g}"
    if head in ("budget", "samples"):
        return f"{row[head]:g}"
    return f"{row[head]:.4g} [{row[f'{head}_lo']:.4g}, {row[f'{head}_hi']:.4g}]"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
