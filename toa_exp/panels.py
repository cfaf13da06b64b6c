"""The over-optimisation panel of all runs below a folder: figures, tables, and where gold turns down."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toa_exp.figures import lines, looks_of, save, signature, title
from toa_exp.gold import Gold, SelectedByGold
from toa_exp.overoptimisation import Bin, Panel, Point, Turn, check, write
from toa_exp.results import Run, find_tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
_DRAWN_ALIKE = {"random", "parallel"}
_X_TITLES = {
    "samples": "Samples per problem",
    "tokens": "Tokens per problem",
    "flops": "FLOPs per problem",
    "kl": "KL of best-of-n (nats)",
}


def overoptimisation(
    folder: Path, gold: Gold, name: str, *, x: str, bins: int, out: Path | None
) -> tuple[list[Turn], list[Path]]:
    """Draw the panel of each task below a folder; returns where gold turned, and the files.

    `name` is what the gold measure is called. The files are `<task>-overoptimisation-<name>.*`: figures,
    the curve as CSV and, ending in -calibration and -turns, the other two tables. Raises BadInput where
    there is nothing to draw.
    """
    check(x, bins)
    tasks = find_tasks(folder)
    out = folder / "figures" if out is None else out
    turns, files = [], []
    for task, runs in tasks.items():
        panels = _panels(task, runs, gold, name)
        if x == "kl":
            _warn_of_kl(panels)
        points = [panel.points(x) for panel in panels]
        calibration = [panel.calibration(bins) for panel in panels]
        found = [panel.turn() for panel in panels]
        stem = out / f"{task}-overoptimisation-{name}"
        for rows, kind, suffix in (
            ([p for curve in points for p in curve], Point, ""),
            ([b for curve in calibration for b in curve], Bin, "-calibration"),
            (found, Turn, "-turns"),
        ):
            path = stem.with_name(f"{stem.name}{suffix}.csv")
            write(path, rows, kind)
            files.append(path)
        made = signature([panel.line for panel in panels], gold=name, x=x, quantiles=bins)

        def fill(
            figure: Figure,
            panels: Sequence[Panel] = panels,
            points: Sequence[Sequence[Point]] = points,
            calibration: Sequence[Sequence[Bin]] = calibration,
        ) -> None:
            _fill(figure, panels, points, calibration, x, name)

        files += save(stem, made, (9.5, 3.4), fill)
        turns += found
    return turns, files


def _panels(task: str, runs: Sequence[Run], gold: Gold, name: str) -> list[Panel]:
    drawn = lines(runs, "samples", "best_reward")
    pools = runs[0].pools
    panels, refused = [], None
    for line in drawn:
        try:
            judged = [gold.judge(run) for run in line.runs]
        except SelectedByGold as error:
            log.warning("left out, since %s: %s", error, line.runs[0].folder.parent)
            refused = error
            continue
        panels.append(Panel(task, title(line, drawn), line, judged, pools.get(name)))
    if refused is not None and not panels:
        raise refused
    return panels


def _warn_of_kl(panels: Sequence[Panel]) -> None:
    """Say which curves are not best-of-n of samples that are drawn alike, whose KL is not what x says."""
    others = [
        panel.curve
        for panel in panels
        if panel.line.label("method").partition(",")[0] not in _DRAWN_ALIKE
        or panel.line.label("selection") != "best_reward"
    ]
    if others:
        log.warning(
            "x=kl is log n - (n - 1) / n, the divergence of best-of-n of samples drawn alike; that of "
            "%s is another one and unknown, and is drawn as if it were",
            ", ".join(others),
        )


def _fill(
    figure: Figure,
    panels: Sequence[Panel],
    points: Sequence[Sequence[Point]],
    calibration: Sequence[Sequence[Bin]],
    x: str,
    name: str,
) -> None:
    """Selecting reward and gold against x, and gold against the selecting reward."""
    proxies, golds, calibrated = figure.subplots(1, 3)
    styles = looks_of({panel.line.label("method") for panel in panels})
    gold_title = name.replace("_", " ").capitalize()
    for panel, curve, bins in zip(panels, points, calibration, strict=True):
        look = styles[panel.line.label("method")]
        at = [p.x for p in curve]
        _curve(proxies, at, [(p.proxy, p.proxy_lo, p.proxy_hi) for p in curve], look, panel.curve)
        _curve(golds, at, [(p.gold, p.gold_lo, p.gold_hi) for p in curve], look, panel.curve)
        _curve(calibrated, [b.proxy for b in bins], [(b.gold, b.gold_lo, b.gold_hi) for b in bins], look, "")
    for axes, label in ((proxies, "Selecting reward of the answer"), (golds, f"{gold_title} of the answer")):
        axes.set_xlabel(_X_TITLES[x])
        axes.set_title(label, loc="left", fontsize=8)
        values = [p.x for curve in points for p in curve]
        if x == "samples":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        elif x != "kl" and max(values) > 10 * min(values):
            axes.set_xscale("log")
    calibrated.set_title(f"{gold_title} of samples", loc="left", fontsize=8)
    calibrated.set_xlabel("Selecting reward, by quantile")
    for axes in (proxies, golds, calibrated):
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    figure.suptitle(panels[0].task, x=0.012, ha="left", fontsize=9)
    figure.legend(*proxies.get_legend_handles_labels(), loc="outside right upper")


def _curve(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[tuple[float, float, float]],
    look: tuple[str, str, float],
    label: str,
) -> None:
    colour, marker, size = look
    mean, low, high = zip(*values, strict=True) if values else ((), (), ())
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(x, mean, color=colour, marker=marker, markersize=size, linewidth=1.4, label=label,
              markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
