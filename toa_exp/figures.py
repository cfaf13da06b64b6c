"""Draws scaling curves from finished runs, each figure with a signature of how it was made."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toa_exp import __version__
from toa_exp.errors import BadInput, choose
from toa_exp.results import AXES, Point, Run, find_tasks, points
from toa_exp.stats import LEVEL, RESAMPLES, SEED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ["png", "svg", "pdf"]

_AXIS_TITLES = {
    "samples": "Samples per problem",
    "tokens": "Tokens per problem (prompt + completion)",
    "flops": "FLOPs per problem",
    "total_flops": "FLOPs per problem, reward model included",
    "usd": "US dollars per problem",
    "seconds": "Engine seconds per problem",
}
# The paper's methods look the same in every figure; others follow in alphabetical order.
_FIRST_METHODS = ["random", "prs", "parallel", "sequential", "moa", "toa"]
# Okabe and Ito's palette, told apart by the colour-blind; markers tell apart in print.
_COLOURS = ["#7f7f7f", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#000000"]
_MARKERS = [("o", 4.4), ("s", 4.0), ("^", 4.8), ("D", 3.9), ("v", 4.8), ("*", 7.5), ("X", 5.0), ("p", 5.0)]
_DASHES = ["-", "--", ":", "-."]
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
    "svg.hashsalt": "toa-exp",
}
_WIDTH = 5.5  # inches
_SIGNATURE_WIDTH = 118  # characters of 5 points across so wide a figure


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a figure: a method's runs over their seeds, and the points they give."""

    runs: Sequence[Run]
    points: Sequence[Point]

    def label(self, name: str) -> str:
        """What the runs of the curve have in common under one of results.LABELS."""
        return self.runs[0].labels[name]


def figures(folder: Path, x: str, y: str | None, out: Path | None) -> list[Path]:
    """Draw all curves below a folder, one figure a task, as PNG, SVG and PDF; returns the files.

    `x` is one of results.AXES, `y` a metric of the runs or best_reward (None: the first metric).
    The files are `<task>-<y>-vs-<x>.*` in `out` (None: `figures` inside the folder). The same runs
    give the same bytes. Raises BadInput where there is nothing to draw.
    """
    if x not in AXES:
        raise choose("x", x, AXES)
    tasks = find_tasks(folder)
    chosen = {task: chosen_metric(task, runs, y) for task, runs in tasks.items()}
    out = folder / "figures" if out is None else out
    written = []
    for task, metric in chosen.items():
        drawn = lines(tasks[task], x, metric)
        written += draw(drawn, x, metric, out / f"{task}-{metric}-vs-{x}")
    return written


def lines(runs: Iterable[Run], x: str, y: str) -> list[Line]:
    """The curves of these runs: one for each experiment, ensemble and method, over all seeds.

    Raises BadInput where the seeds of a curve differ in more than the seed.
    """
    groups: dict[Path, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.folder.parent, []).append(run)
    for parent, group in groups.items():
        for name in ("selection", "reward", "engine", "flops", "configuration"):
            if len(values := {run.labels[name] for run in group}) > 1:
                raise BadInput(
                    f"the seeds in {parent} differ in {name}: {', '.join(sorted(values))}. They are no one "
                    f"curve; give the runs different names with experiment=<name>"
                )
    drawn = [Line(group, points(group, x, y)) for group in groups.values()]
    if not any(line.points for line in drawn):
        raise BadInput(f"no problem has an answer in {', '.join(map(str, groups))}: nothing to draw")
    return [line for line in drawn if line.points]


def signature(drawn: Sequence[Line], **more: object) -> str:
    """How numbers were made, as `name:value|name:value`, in the manner of sacreBLEU (Post 2018).

    n is the number of problems and failed that of outcomes (a problem with a seed) without an
    answer, both at the budget where it is worst. Where curves differ, each value is followed by the
    curves it holds for. flops names the rule they are counted by, toa-exp the version of the runs
    and of what drew them.
    """
    fields: dict[str, object] = {}
    for name in ("experiment", "task", "ensemble"):
        fields[name] = ",".join(dict.fromkeys(line.label(name) for line in drawn))
    for name in ("reward", "selection", "engine", "flops"):
        fields[name] = _shared(drawn, operator.methodcaller("label", name))
    fields["seeds"] = _shared(drawn, lambda line: ",".join(str(run.seed) for run in line.runs))
    fields["n"] = _shared(drawn, lambda line: min(point.problems for point in line.points))
    fields["failed"] = _shared(drawn, lambda line: max(point.failed for point in line.points))
    fields |= more
    fields["bootstrap"] = f"{RESAMPLES} resamples of problems,{LEVEL:.0%},seed {SEED}"
    versions = {run.labels["version"] for line in drawn for run in line.runs}
    fields["toa-exp"] = ",".join(sorted(versions | {__version__}))
    return "|".join(f"{name}:{value}" for name, value in fields.items())


def draw(drawn: Sequence[Line], x: str, y: str, stem: Path) -> list[Path]:
    """Draw curves into `stem` with the endings of FORMATS; returns the files."""

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        _plot(axes, drawn)
        _decorate(axes, drawn, x, y)

    return save(stem, signature(drawn, x=x, y=y), (_WIDTH, 3.5), fill)


def save(stem: Path, made: str, size: tuple[float, float], fill: Callable[[Figure], None]) -> list[Path]:
    """A figure of `size` in inches that `fill` draws, signed with `made`, in all FORMATS; the files."""
    from matplotlib import style
    from matplotlib.figure import Figure

    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in FORMATS]
    with style.context(["default", _STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=size)
        fill(figure)
        _sign(figure, made)
        for path in files:
            figure.savefig(path, dpi=200, metadata=_metadata(path.suffix[1:], stem.name, made))
    return files


def chosen_metric(task: str, runs: Sequence[Run], y: str | None) -> str:
    """The metric to draw, one that all runs of the task have; raises BadInput for another."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    if y is None:
        return next((name for name in shared if name != "best_reward"), "best_reward")
    if y not in shared:
        raise choose(f"y for task {task}", y, shared)
    return y


def _shared(drawn: Sequence[Line], value: Callable[[Line], object]) -> str:
    """The one value of all curves, or each value with the curves it holds for, most of them last."""
    titles: dict[str, list[str]] = {}
    for line in drawn:
        titles.setdefault(str(value(line)), []).append(title(line, drawn))
    if len(titles) == 1:
        return next(iter(titles))
    *groups, (most, names) = sorted(titles.items(), key=lambda group: len(group[1]))
    groups.append((most, ["others"] if len(names) > 1 else names))
    return " ".join(f"{value} ({', '.join(names)})" for value, names in groups)


def title(line: Line, drawn: Sequence[Line]) -> str:
    """What the legend calls a curve: its method, and whatever else tells it from the others."""
    return " · ".join([line.label("method"), *_variant(line, drawn)])


def _variant(line: Line, drawn: Sequence[Line]) -> tuple[str, ...]:
    names = [name for name in ("ensemble", "experiment") if len({other.label(name) for other in drawn}) > 1]
    return tuple(line.label(name) for name in names)


def _plot(axes: Axes, drawn: Sequence[Line]) -> None:
    """The curves with their bands: colour and marker by method, dashes by what else differs.

    Where all are of one method, colour and marker are by what differs.
    """
    variants = list(dict.fromkeys(_variant(line, drawn) for line in drawn))
    alone = len({line.label("method") for line in drawn}) == 1 < len(variants)
    names = [" ".join(_variant(line, drawn)) if alone else line.label("method") for line in drawn]
    chosen = looks_of(set(names))
    for name, line in zip(names, drawn, strict=True):
        colour, marker, size = chosen[name]
        dashes = "-" if alone else _DASHES[variants.index(_variant(line, drawn)) % len(_DASHES)]
        x = [point.x for point in line.points]
        lower, upper = [point.lower for point in line.points], [point.upper for point in line.points]
        axes.fill_between(x, lower, upper, color=colour, alpha=0.13, linewidth=0)
        if len(x) == 1:  # a band of one point has no width
            axes.vlines(x, lower, upper, color=colour, alpha=0.5, linewidth=1.4)
        axes.plot(
            x,
            [point.y for point in line.points],
            label=title(line, drawn),
            color=colour,
            linewidth=1.4,
            linestyle=dashes,
            marker=marker,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.4,
        )


def looks_of(methods: set[str]) -> dict[str, tuple[str, str, float]]:
    """Colour, marker and its size by method; no two methods have both in common."""
    first = [index for index, method in enumerate(_FIRST_METHODS) if method in methods]
    reserved = range(len(_FIRST_METHODS))
    unused = [index for index in reserved if index not in first]
    free = itertools.chain(range(len(reserved), len(_COLOURS)), unused, itertools.count(len(_COLOURS)))
    others = sorted(methods - set(_FIRST_METHODS))
    places = [*((_FIRST_METHODS[index], index) for index in first), *zip(others, free, strict=False)]
    count = len(_COLOURS)
    return {
        method: (_COLOURS[index % count], *_MARKERS[(index + index // count) % count])
        for method, index in places
    }


def _decorate(axes: Axes, drawn: Sequence[Line], x: str, y: str) -> None:
    """Scales, titles and legend."""
    axes.set_title(drawn[0].label("task"), loc="left", fontsize=9)
    axes.set_xlabel(_AXIS_TITLES[x])
    axes.set_ylabel(y.replace("_", " ").capitalize())
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    _scale(axes, sorted({point.x for line in drawn for point in line.points}), x)
    _legend(axes, drawn)


def _scale(axes: Axes, values: Sequence[float], x: str) -> None:
    """A logarithmic x-axis where the values span more than a decade."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator

    if values[0] <= 0 or values[-1] / values[0] <= 10:
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
        return
    if x == "samples":
        axes.set_xscale("log", base=2)
        ticks = [2.0**power for power in range(21) if values[0] <= 2.0**power <= values[-1]]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        return
    axes.set_xscale("log")
    if values[-1] / values[0] < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(9, 9)))
        axes.xaxis.set_minor_locator(NullLocator())


def _legend(axes: Axes, drawn: Sequence[Line]) -> None:
    """Beside the axes, in the order in which the curves end, and what the bands mean."""
    from matplotlib.patches import Patch

    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    ended = sorted(drawn, key=lambda line: -line.points[-1].y)
    titles = [title(line, drawn) for line in ended]
    band = Patch(color="#7f7f7f", alpha=0.25, linewidth=0)
    axes.legend(
        [*(entries[name] for name in titles), band],
        [*titles, f"{LEVEL:.0%} interval\nover problems"],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        borderaxespad=0.0,
        labelspacing=0.55,
        handlelength=2.6,
    )


def _sign(figure: Figure, made: str) -> None:
    """The signature in small print below the axes, which make room for it."""
    width = _SIGNATURE_WIDTH * figure.get_figwidth() / _WIDTH
    rows = [""]
    for field in made.split("|"):
        if rows[-1] and len(rows[-1]) + len(field) > width:
            rows.append("")
        rows[-1] += f"{field}|"
    text = "\n".join(rows)[:-1]
    figure.text(0.012, 0.012, text, fontsize=5, color="#7f7f7f", va="bottom", parse_math=False)
    height = (len(rows) * 5 * 1.4 + 6) / 72 / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0.0, height, 1.0, 1.0 - height))


def _metadata(ending: str, title: str, made: str) -> dict[str, Any]:
    """What the file says of itself; no date, so that the same input gives the same bytes."""
    program = f"toa-exp {__version__}"
    fields: dict[str, dict[str, Any]] = {
        "png": {"Title": title, "Description": made, "Software": program},
        "svg": {"Title": title, "Description": made, "Creator": program, "Date": None},
        "pdf": {"Title": title, "Subject": made, "Creator": program, "CreationDate": None},
    }
    return fields[ending]
