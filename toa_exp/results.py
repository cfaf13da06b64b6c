"""Reads finished run folders: what they are, and the points of their scaling curves."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toa_exp.errors import BadInput
from toa_exp.metrics.pooled import Pool, pools_of
from toa_exp.stats import bootstrap, bootstrap_means

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

AXES = ["samples", "tokens", "flops", "total_flops", "usd", "seconds"]
"""What a curve can be drawn against; `total_flops` includes the reward model's share."""

LABELS = [
    "experiment", "task", "ensemble", "method", "selection", "reward", "engine", "version", "configuration"
]  # fmt: skip
"""What the `run` mapping of a config.yaml names."""


TRAJECTORIES = "trajectories.jsonl"
OUTCOMES = "outcomes.jsonl.gz"
"""The lines of a run's trajectories with `best_reward` in place of the samples: small enough to publish."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run folder.

    `labels` holds LABELS by name, and `flops`, the rule they are counted by. `metrics` are the
    columns of curve.csv that have an interval, `pools` the functions of those that are no mean
    (metrics/pooled.py). `problems` is a digest of the task's problems, and `failed` counts by budget
    those without an answer.
    """

    folder: Path
    seed: int
    labels: Mapping[str, str]
    metrics: tuple[str, ...]
    pools: Mapping[str, Pool]
    problems: str
    failed: Mapping[float, int]


@dataclass(frozen=True, slots=True)
class Point:
    """One budget of a curve: means over `problems`, with the 95 % interval of `y`.

    `failed` counts outcomes (a problem with a seed) without an answer. A problem that has an answer
    for some seeds enters with the mean over those.
    """

    budget: float
    x: float
    y: float
    lower: float
    upper: float
    problems: int
    failed: int


def find_runs(folder: Path) -> list[Run]:
    """The finished runs below a folder, in the order of their paths and seeds.

    Unfinished ones are left out with a warning. Raises BadInput where the folder does not exist or
    holds no finished run.
    """
    if not folder.is_dir():
        raise BadInput(
            f"there is no folder {str(folder)!r}. `toa-exp run experiment=<name> ...` makes results/<name>"
        )
    folders = {path.parent for path in folder.resolve().rglob("config.yaml")}
    folders = {path for path in folders if path.name.startswith("seed=")}
    finished = {path for path in folders if _finished(path)}
    for path in sorted(folders - finished):
        log.warning("left out, since it is not finished: %s (rerun its command to go on)", path)
    if not finished:
        unfinished = f" ({len(folders)} unfinished: rerun their commands)" if folders else ""
        raise BadInput(
            f"there is no finished run below {str(folder)!r}{unfinished}. "
            f"Make one with: toa-exp run experiment=<name> task=<task> method=<method>"
        )
    return sorted(map(_read_run, finished), key=lambda run: (run.folder.parent, run.seed))


def find_tasks(folder: Path) -> dict[str, list[Run]]:
    """The finished runs below a folder by task.

    Raises BadInput as `find_runs` does, and where runs of one task had different problems: ids may be the
    same, so that nothing else would tell.
    """
    tasks: dict[str, list[Run]] = {}
    for run in find_runs(folder):
        tasks.setdefault(run.labels["task"], []).append(run)
    for task, runs in tasks.items():
        made = {run.problems: run.folder for run in runs}
        if len(made) > 1:
            raise BadInput(
                f"runs of task {task} were made on different problems (run.problems in config.yaml): "
                f"{', '.join(f'{digest} in {where}' for digest, where in made.items())}. Give runs on other "
                f"problems an experiment=<name> of their own, or move them elsewhere"
            )
    return tasks


def trajectories_of(folder: Path) -> Path:
    """The trajectories of a finished run; raises BadInput where only its outcomes were published."""
    path = folder / TRAJECTORIES
    if not path.exists():
        raise BadInput(
            f"{folder} has no {TRAJECTORIES}: its outcomes alone were published, and other metrics need "
            f"the answers. Rerun its command (config.yaml has all of it)"
        )
    return path


def points(runs: Sequence[Run], x: str, y: str) -> list[Point]:
    """The curve of one method over the seeds in `runs`: `y` against `x`, one point a budget.

    Each problem is averaged over the seeds first; then problems are resampled. A budget at which no
    problem has an answer gives no point, and a warning. Raises BadInput where the seeds have
    different budgets, or where `x` is usd and a price is unknown.
    """
    budgets = list(runs[0].failed)
    for run in runs:
        if list(run.failed) != budgets:
            raise BadInput(
                f"seeds of one curve have different budgets: {run.folder} has {_listed(run.failed)}, "
                f"{runs[0].folder} has {_listed(budgets)}. Run all seeds with the same budget"
            )
    tables = gather(runs, x, y)
    curve = []
    for budget in budgets:
        point = _point(budget, runs, tables[budget].rows, runs[0].pools.get(y))
        if point is None:
            where = runs[0].folder.parent
            log.warning("no answer to any problem at budget %g in %s: no point", budget, where)
        else:
            curve.append(point)
    return curve


@dataclass(frozen=True, slots=True)
class Table:
    """The outcomes of one curve at one budget, a row a problem: `problems` are the rows' ids.

    A row holds how many seeds have an answer, and sums over these of `x` and of `y`, which takes
    several columns where it is a pooled metric. Without an answer a row is 0.
    """

    problems: Sequence[str]
    rows: NDArray[np.float64]


def gather(runs: Sequence[Run], x: str, y: str) -> dict[float, Table]:
    """What the seeds in `runs` found, by budget; problems come in the order of the task."""
    import numpy as np

    places: dict[str, int] = {}
    sums: dict[float, array[float]] = {budget: array("d") for budget in runs[0].failed}
    width = 0
    for run in runs:
        for problem, budget, values in _outcomes(run, x, y):
            place = places.setdefault(problem, len(places))
            if values is None:
                continue
            width = width or 1 + len(values)
            column = sums[budget]
            column.extend([0.0] * max(0, (place + 1) * width - len(column)))
            for offset, value in enumerate((1.0, *values), start=place * width):
                column[offset] += value
    problems = list(places)
    for column in sums.values():
        column.extend([0.0] * (len(problems) * width - len(column)))
    return {
        budget: Table(problems, np.frombuffer(column).reshape(len(problems), width or 3))
        if width
        else Table(problems, np.zeros((len(problems), 3)))
        for budget, column in sums.items()
    }


def estimate(rows: NDArray[np.float64], pool: Pool | None) -> tuple[float, float]:
    """`x` and `y` of a curve over the rows of a `Table` that have an answer."""
    x = (rows[:, 1] / rows[:, 0]).mean()
    y = (rows[:, 2] / rows[:, 0]).mean() if pool is None else pool(rows[:, 2:])
    return float(x), float(y)


def _finished(folder: Path) -> bool:
    outcomes = (folder / name for name in (TRAJECTORIES, OUTCOMES))
    return any(path.exists() for path in outcomes) and (folder / "curve.csv").exists()


def _read_run(folder: Path) -> Run:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    labels = config.get("run", {})
    missing = [f"run.{name}" for name in LABELS if name not in labels]
    missing += [name for name in ("seed", "flops") if name not in config]
    if missing:
        raise BadInput(
            f"{folder / 'config.yaml'} names no {', '.join(missing)}: this folder was not made by "
            f"`toa-exp run`. Move it elsewhere, or make it anew"
        )
    with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        failed = {float(row["budget"]): int(row["failed"]) for row in reader}
        columns = reader.fieldnames or ()
    metrics = tuple(name for name in columns if f"{name}_lo" in columns)
    texts = {name: str(labels[name]) for name in LABELS} | {"flops": str(config["flops"])}
    pools = pools_of(labels.get("pools") or {})
    problems = str(labels.get("problems"))
    return Run(folder, int(config["seed"]), texts, metrics, pools, problems, failed)


def _outcomes(run: Run, x: str, y: str) -> Iterator[tuple[str, float, list[float] | None]]:
    """Problem, budget and [x, y...] of each line of its outcomes; None without an answer."""
    path = run.folder / TRAJECTORIES
    published = not path.exists()
    if published:
        path = run.folder / OUTCOMES
    with gzip.open(path, "rt", encoding="utf-8") if published else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                values = None
                if record["answer"] is not None:
                    values = [_spent(record["cost"], x, run), *_quality(record, y)]
                yield record["problem"], record["budget"], values
            except (ValueError, KeyError) as error:
                raise BadInput(
                    f"{path}:{number} is no outcome ({type(error).__name__}: {error}). "
                    f"Rerun its command to write the file again; nothing is drawn anew"
                ) from None


def _spent(cost: Mapping[str, Any], x: str, run: Run) -> float:
    if x == "tokens":
        return float(cost["prompt_tokens"] + cost["completion_tokens"])
    if x == "total_flops":
        return float(cost["flops"] + cost["reward_flops"])
    if cost[x] is None:
        raise BadInput(
            f"{x} is unknown in {run.folder}: an agent has no price. Set ensemble.agents.<agent>.price="
            f"{{prompt: <USD per million tokens>, completion: ...}} and rerun its command (nothing is "
            f"drawn anew), or choose another x: {', '.join(axis for axis in AXES if axis != x)}"
        )
    return float(cost[x])


def _quality(record: Mapping[str, Any], y: str) -> list[float]:
    if y == "best_reward":
        if "samples" not in record:
            return [float(record["best_reward"])]
        return [float(max(sample["reward"] for sample in record["samples"] if sample["failure"] is None))]
    value = record["metrics"][y]
    return [float(part) for part in value] if isinstance(value, list) else [float(value)]


def _point(budget: float, runs: Sequence[Run], rows: NDArray[np.float64], pool: Pool | None) -> Point | None:
    rows = rows[rows[:, 0] > 0]
    failed = sum(run.failed[budget] for run in runs)
    if not len(rows):
        return None
    x, y = estimate(rows, pool)
    if pool is None:
        _, (lower,), (upper,) = bootstrap_means(rows[:, 2:] / rows[:, :1])
    else:
        _, lower, upper = bootstrap(rows[:, 2:], pool)
    return Point(budget, x, y, float(lower), float(upper), len(rows), failed)


def _listed(budgets: Mapping[float, int] | Sequence[float]) -> str:
    return ", ".join(f"{budget:g}" for budget in budgets)
