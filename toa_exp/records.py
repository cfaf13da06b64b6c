"""How a run says what it was: config.yaml, its signature, and the printed curve."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp import __version__
from toa_exp.curves import Row, metrics_of, write_curve
from toa_exp.draws import canonical, digest
from toa_exp.errors import BadInput
from toa_exp.redact import without_secrets
from toa_exp.sampler import Counts
from toa_exp.stats import LEVEL, RESAMPLES, SEED

log = logging.getLogger(__name__)

# What may differ between two runs of the same results.
_IMMATERIAL = {
    "concurrency",
    "retries",
    "backoff",
    "tracking",
    "sweep_keys",
    "results",
    "store",
    "runner",
    "warm_up",
}
# How an endpoint is reached, and how often; see engines/openai.py and rewards/http.py.
_REACH = {
    "base_url",
    "key_env",
    "omit",
    "token_limit",
    "timeout",
    "connect_timeout",
    "start",
    "most",
    "pause",
    "longest_wait",
}

# Where models run, and how many at once; see engines/vllm.py and engines/turns.py.
_PLACE = {
    "tensor_parallel_size",
    "max_num_seqs",
    "prefix_caching",
    "gpu_memory_utilization",
    "gpus",
    "residents",
    "patience",
    "sleep_level",
}


def record(
    config: DictConfig,
    choices: Mapping[str, Any],
    names: Mapping[str, str],
    problems: str,
    pools: Mapping[str, str],
) -> dict[str, Any]:
    """The resolved configuration with what it was run by, under `run`, as config.yaml has it.

    `problems` is a digest of the task's problems and `pools` names the functions of its pooled
    metrics. `run.configuration` is a digest of all that decides the results, the seed apart.
    """
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    values = {str(key): value for key, value in resolved.items()}
    material = {key: value for key, value in flat(values).items() if _decides(key) and key != "seed"}
    run = {
        "version": __version__,
        **{part: names[part] for part in ("experiment", "task", "ensemble", "method")},
        **{group: str(choices[group]) for group in ("selection", "reward")},
        "engine": "+".join(sorted(_engines(choices, values["ensemble"]["agents"]))),
        "problems": problems,
        "pools": dict(pools),
        "configuration": digest(canonical({**material, "problems": problems})).hex()[:8],
    }
    return {"run": run, **values, "store": without_secrets(values["store"])}


def _engines(choices: Mapping[str, Any], agents: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The choices of engines that some agent uses: the run's, or one that the agent names."""
    used = {agent.get("engine") for agent in agents.values()}
    named = {
        name or None: str(choice)
        for group, choice in choices.items()
        for prefix, _, name in [group.partition("@engines.")]
        if prefix == "engine"
    }
    return {choice for name, choice in named.items() if name in used} or {named[None]}


@contextlib.contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`; raises BadInput, which says `busy`, where another process does."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(busy) from error
        yield


def warn_of_changes(folder: Path, values: Mapping[str, Any]) -> None:
    """Log what differs from the configuration whose results the folder holds."""
    path = folder / "config.yaml"
    if not path.is_file():
        return
    before: Any = OmegaConf.to_container(OmegaConf.load(path))
    changes = [
        f"{key} {old!r} -> {new!r}"
        for key, (old, new) in _differences(flat(before), flat(values)).items()
        if _decides(key) and key != "run.configuration"
    ]
    if changes:
        log.warning(
            "%s holds results of another configuration, which these replace (its draws stay in the "
            "store; name runs apart with experiment=<name>): %s",
            folder,
            "; ".join(changes),
        )


def publish(folder: Path, trajectories: Path, values: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Put the results of a run into its folder, in place of earlier ones, all of them or none."""
    curve, config = folder / "curve.csv.partial", folder / "config.yaml.partial"
    write_curve(curve, rows)
    OmegaConf.save(OmegaConf.create(dict(values)), config)
    for partial in (config, curve, trajectories):
        partial.replace(partial.with_suffix(""))


def signature(values: Mapping[str, Any], problems: int, failed: int) -> str:
    """How numbers were made, in one line, after the example of sacrebleu's signatures."""
    run = values["run"]
    parts = {
        **{part: run[part] for part in ("task", "ensemble", "method", "selection", "reward", "engine")},
        "configuration": run["configuration"],
        "seed": values["seed"],
        "flops": values["flops"],
        "n": problems,
        "failed": failed,
        "interval": f"bootstrap{LEVEL:.0%},resamples={RESAMPLES},seed={SEED}",
        "toa-exp": run["version"],
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def table(
    rows: Sequence[Row], values: Mapping[str, Any], folder: Path, counts: Counts, notes: Sequence[str] = ()
) -> str:
    """The curve as text, with its signature, where it is stored and how much of it had to be drawn.

    `notes` are further lines, of how the engine ran.
    """
    metrics = metrics_of(rows)
    heads = ["budget", "samples", "tokens", "FLOPs", *metrics]
    lines = [[_cell(row, head) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [heads, *lines]
    ]
    made = f"written to {folder}; {counts.drawn} samples drawn, {counts.stored} found in the store"
    problems = max((row["problems"] for row in rows), default=0)
    failed = max((row["failed"] for row in rows), default=0)
    return "\n".join([*text, signature(values, problems, failed), made, *notes, ""])


def _cell(row: Row, head: str) -> str:
    if not row["problems"]:
        return f"{row['budget']:g}" if head == "budget" else "-"
    if head == "tokens":
        return f"{row['prompt_tokens'] + row['completion_tokens']:.0f}"
    if head == "FLOPs":
        return f"{row['flops']:.3g}"
    if head in ("budget", "samples"):
        return f"{row[head]:g}"
    if row[head] is None:
        return "unknown"
    return f"{row[head]:.4g} [{row[f'{head}_lo']:.4g}, {row[f'{head}_hi']:.4g}]"


def _decides(key: str) -> bool:
    """Whether a key of the configuration, dotted, has a say in the results."""
    group = key.partition(".")[0]
    *above, last = key.split(".")
    reach = (
        group in {"ensemble", "reward"} or {"engine", "engines"} & set(above)
    ) and last in _REACH | _PLACE
    return group not in _IMMATERIAL and not reach


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
