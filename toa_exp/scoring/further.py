"""A metric beside those of the task, such as COMET: `toa-exp score metric=<metric>`."""

from __future__ import annotations

import asyncio
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from toa_exp.build import build
from toa_exp.errors import BadInput
from toa_exp.metrics.of_run import TaskMetrics
from toa_exp.scoring.measure import Measure, Scored


def with_metric(scored: Scored, config: DictConfig) -> Scored:
    """What was scored, with `config.metric` where there is one.

    Raises BadInput for a metric of whole runs, and for outputs that it cannot be had of.
    """
    if config.get("metric") is None:
        return scored
    target: Any = get_object(str(config.metric._target_))
    if target is TaskMetrics:
        return scored
    if not hasattr(target, "measured"):
        raise BadInput(
            "this metric is of stored runs: toa-exp evaluate <run folder> metric=<metric>. This adds "
            "comet, cometkiwi, cometkiwi_xxl and xcomet"
        )
    if not scored.outputs:
        raise BadInput(
            f"metric={config.metric.name} judges translations: rows of id, src, refs and hyps, or of id and "
            "one output a problem"
        )
    measure, scores = asyncio.run(_measured(build(config.metric, "metric"), scored))
    name = config.metric.name
    rows = [{**row, name: score} for row, score in zip(scored.rows, scores, strict=True)]
    return Scored({**scored.measures, name: measure}, rows, scored.outputs, scored.failed)


async def _measured(metric: Any, scored: Scored) -> tuple[Measure, list[float]]:
    try:
        found: tuple[Measure, list[float]] = await metric.measured(scored.outputs, scored.failed)
    finally:
        await metric.close()
    return found
