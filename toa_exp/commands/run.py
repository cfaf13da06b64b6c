"""Run a method on a task at one budget or several and write its scaling curve.

Rerunning the same command goes on where it ended: what the store holds is not drawn again. Results
are in results/<experiment>/<task>/<ensemble>/<method>/seed=<n>/.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from toa_exp import records
from toa_exp.app import launch
from toa_exp.curves import Curve
from toa_exp.engines.base import report
from toa_exp.errors import Incomplete
from toa_exp.figures import figures
from toa_exp.job import Job, assemble
from toa_exp.labels import labels
from toa_exp.metrics.pooled import pools_of
from toa_exp.progress import Progress
from toa_exp.runner import Outcome
from toa_exp.sampler import Counts
from toa_exp.tracking import Tracker

log = logging.getLogger(__name__)

_SHOWN = 5  # problems, and reasons why they have no answer


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_run, "config", arguments, "run")


def _run(config: DictConfig) -> None:
    """Run one configuration and write its run folder.

    Raises Incomplete where problems have no answer, after everything else has been written.
    """
    hydra = HydraConfig.get()
    names = labels(config, hydra)
    folder = Path(hydra.runtime.output_dir)
    job = assemble(config, list(hydra.overrides.task))
    log.info("%d problems", job.problems)
    job.check_concurrency()
    record = records.record(config, hydra.runtime.choices, names, job.content, job.pools)
    busy = (
        f"another process is running in {folder}; wait for it, or name this run apart with experiment=<name>"
    )
    with records.exclusive(folder / "run.lock", busy), Tracker(config.tracking, folder, record) as tracker:
        records.warn_of_changes(folder, record)
        partial = folder / "trajectories.jsonl.partial"
        watch = asyncio.run(_carry_out(job, partial, names))
        if partial.stat().st_size:  # where nothing came of it, earlier results stay
            rows = watch.curve.rows()
            records.publish(folder, partial, record, rows)
            print(records.table(rows, record, folder, watch.counts, report(job.engine)))
            tracker.curve(rows)
            tracker.outputs()
            tracker.figures(lambda: figures(folder, "flops", None, folder / "figures"))
        watch.warn()
        for line in report(job.engine):
            log.info("%s", line)
        log.info("done: %s", watch.counts)
        if watch.reasons:
            raise _incomplete(watch.reasons, job.problems)


class _Watch:
    """Observes a run: fills the curve, moves the bar, keeps which problems have no answer and why."""

    def __init__(self, curve: Curve, progress: Progress, counts: Counts) -> None:
        self.curve = curve
        self.counts = counts
        self.reasons: dict[str, str] = {}
        self.samples: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self._progress = progress
        self._said: set[str] = set()

    def outcomes(self, outcomes: list[Outcome]) -> None:
        """A problem is done."""
        for outcome in outcomes:
            self.curve.add(outcome)
            if outcome.answer is None:
                self._give_up(outcome.problem, _why(outcome))
        for step in outcomes[-1].steps:  # the longest of the searches, which stands for all
            agent, failure = step.reply.request.agent, step.reply.failure
            self.samples[agent] += 1
            if failure is not None:
                self.failures[agent, failure] += 1
        self._progress.advance()

    def parked(self, problem: str, reason: str) -> None:
        """A problem could not be finished."""
        self.curve.park()
        self._give_up(problem, reason)
        self._progress.advance()

    def warn(self) -> None:
        """Name the agents some of whose samples failed."""
        for (agent, failure), number in self.failures.items():
            mend = f": {_MENDS[failure]}" if failure in _MENDS else ""
            log.warning(
                "agent %r: %d of %d samples failed (%s)%s", agent, number, self.samples[agent], failure, mend
            )

    def _give_up(self, problem: str, reason: str) -> None:
        if problem in self.reasons:
            return
        level = logging.INFO if reason in self._said else logging.WARNING
        log.log(level, "problem %s has no answer: %s", problem, reason)
        self.reasons[problem] = reason
        self._said.add(reason)


_MENDS = {
    "context_window": "the prompt is over the context window: choose models with a longer one, or leave the "
    "problem out (task.ids)",
    "content_filter": "the endpoint filters it: choose another, or leave the problem out (task.ids)",
    "reasoning_cut": "max_tokens ends before the answer begins: raise ensemble.sampling.max_tokens",
}


def _why(outcome: Outcome) -> str:
    if not outcome.steps:
        return f"a budget of {outcome.budget:g} does not pay for one sample"
    if any(step.reply.failure is None for step in outcome.steps):
        return f"at budget {outcome.budget:g} no sample states an answer that could be voted for"
    kinds = sorted({(step.reply.request.agent, str(step.reply.failure)) for step in outcome.steps})
    failures = ", ".join(f"agent {agent!r} ({failure})" for agent, failure in kinds)
    mends = [_MENDS[failure] for failure in sorted({failure for _, failure in kinds}) if failure in _MENDS]
    return "; ".join([f"at budget {outcome.budget:g} every sample failed: {failures}", *mends])


async def _carry_out(job: Job, path: Path, names: Mapping[str, str]) -> _Watch:
    counts = Counts()
    label = f"{names['task']} {names['method']} {names['seed']}"
    with closing(Progress(job.problems, label, counts)) as progress:
        watch = _Watch(Curve(names["method"], job.budgets.values, pools_of(job.pools)), progress, counts)
        drawing = asyncio.create_task(progress.watch())
        try:
            await job.place.run(job, path, watch, counts)
        finally:
            drawing.cancel()
    return watch


def _named(problems: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return ", ".join(problems[:_SHOWN]) + more


def _incomplete(reasons: Mapping[str, str], problems: int) -> Incomplete:
    alike: dict[str, list[str]] = {}
    for problem, reason in reasons.items():
        alike.setdefault(reason, []).append(problem)
    some = [f"\n  {_named(alike[reason])}: {reason}" for reason in list(alike)[:_SHOWN]]
    more = f"\n  and {len(alike) - _SHOWN} further reasons, in run.log" if len(alike) > _SHOWN else ""
    return Incomplete(
        f"{len(reasons)} of {problems} problems have no answer:{''.join(some)}{more}\n"
        f"All else is stored; once the cause is mended the same command goes on from there."
    )
