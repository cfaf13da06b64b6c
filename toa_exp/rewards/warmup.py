"""Before a run: is the reward the right way round, and does the method's tau fit its scores?"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from toa_exp.core import Problem
from toa_exp.draws import Score
from toa_exp.errors import BadInput, Unavailable
from toa_exp.rewards.base import Range, Reward
from toa_exp.tasks.base import Task, references_of

log = logging.getLogger(__name__)

Pair = tuple[Problem, str, str]
"""A problem, a good answer and a bad one."""

_SHOWN = 60  # characters of an answer
_SATURATED = 10.0  # times tau: the logistic function of it is 1 but for 0.00005
_FLAT = 0.1  # times tau: over it the logistic function changes by 0.025


def pairs(task: Task) -> Iterator[Pair]:
    """The task's own pairs, or else problems with their reference and with that of the next one."""
    own = getattr(task, "pairs", None)
    if own is not None:
        yield from own()
        return
    for problem, other in pairwise(task.problems()):
        good, bad = references_of(problem)[:1], references_of(other)[:1]
        if good and bad and good[0].strip() != bad[0].strip():
            yield problem, good[0], bad[0]


class WarmUp:
    """Scores a good answer and a bad one, and warns where the bad one is not below.

    They are those of the task (`pairs`), or where it has none `default`, with prompt, good and bad.
    `tau` is the method's, None where it has none. Scores go to the store: a rerun asks for none.
    """

    def __init__(self, reward: Reward, task: Task, default: Mapping[str, str], tau: float | None) -> None:
        self._known = getattr(reward, "range", None) is not None
        self._task = task
        self._default = default
        self._tau = tau

    async def __call__(self, score: Callable[[Problem, str], Awaitable[Score]]) -> None:
        """Warn of what is wrong; what cannot be had now is left to the run itself."""
        problem, good, bad = next(pairs(self._task), None) or self._pair()
        try:
            better = (await score(problem, good)).reward
            worse = (await score(problem, bad)).reward
        except Unavailable as error:
            log.warning("the reward could not be tried on a good and a bad answer: %s", error)
            return
        if better <= worse:
            log.warning(
                "the reward gives a good answer to problem %s (%s) %.4g and a bad one (%s) %.4g: check "
                "that it is the right one for this task, and that higher is better",
                problem.id,
                _shown(good),
                better,
                _shown(bad),
                worse,
            )
        if self._tau is not None and not self._known:
            most = max(abs(better), abs(worse))
            if most > _SATURATED * self._tau:
                _warn_of_tau(self._tau, f"two answers have scores of {better:.4g} and {worse:.4g}", most)

    def _pair(self) -> Pair:
        default = self._default
        return Problem("warm-up", default["prompt"]), default["good"], default["bad"]


def warm_up_of(reward: Reward, task: Task, default: Any, tau: float | None) -> WarmUp | None:
    """The warm-up of a run, None where there is nothing to try or `default` is None."""
    if default is None or not getattr(reward, "warms_up", True):
        return None
    wanted = {"prompt", "good", "bad"}
    right = isinstance(default, Mapping) and set(default) == wanted
    if not right or not all(isinstance(text, str) for text in default.values()):
        raise BadInput(f"warm_up={default}: give {', '.join(sorted(wanted))}, or null for no warm-up")
    return WarmUp(reward, task, default, tau)


def check_tau(tau: float | None, reward: Reward) -> None:
    """Warn where tau, the scale of scores that a method is given, is far off the reward's range.

    A method with a tau takes the logistic function of score / tau.
    """
    known: Range | None = getattr(reward, "range", None)
    if tau is None or known is None or tau <= 0:
        return
    most = max(abs(known.low), abs(known.high))
    if most > _SATURATED * tau or known.high - known.low < _FLAT * tau:
        _warn_of_tau(tau, f"the reward's scores lie from {known.low:g} to {known.high:g}", most)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _warn_of_tau(tau: float, why: str, most: float) -> None:
    what = "saturates" if most > _SATURATED * tau else "hardly changes"
    log.warning(
        "method.tau=%g is far off: %s, over which the logistic function of score / tau %s. A tau from %.2g "
        "to %.2g would fit",
        tau,
        why,
        what,
        most / 4,
        most,
    )
