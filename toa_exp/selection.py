"""Selection: which sample of a trajectory is the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from toa_exp.core import Reply
from toa_exp.errors import BadInput

if TYPE_CHECKING:
    from toa_exp.tasks.base import Task

Canonical = Callable[[str], str | None]
"""The final answer that a text states, so that equal answers are equal strings; None if none."""

Selection = Callable[[Sequence[Reply], Canonical], int | None]
Voting = TypeVar("Voting", bound=Callable[..., int | None])


async def pick(selection: Selection, replies: Sequence[Reply], task: Task) -> int | None:
    """The index of the reply that a selection chooses; its votes are counted as the task compares answers."""
    ballots = getattr(task, "ballots", None)
    function = selection.func if isinstance(selection, partial) else selection
    if ballots is None or not getattr(function, "votes", False):
        return selection(replies, task.final_answer)
    texts = list(dict.fromkeys(replies[index].text for index in _usable(replies)))
    votes: dict[str, str | None] = dict(zip(texts, await ballots(texts), strict=True))
    return selection(replies, votes.get)


def voting(selection: Voting) -> Voting:
    """Mark a selection as one that reads final answers."""
    selection.votes = True  # type: ignore[attr-defined]
    return selection


def best_reward(replies: Sequence[Reply], canonical: Canonical) -> int | None:
    """The index of the usable reply with the highest reward, the first of several; None if none."""
    usable = _usable(replies)
    return max(usable, key=lambda index: replies[index].reward, default=None)


def last(replies: Sequence[Reply], canonical: Canonical) -> int | None:
    """The index of the last usable reply; None if none."""
    return max(_usable(replies), default=None)


@voting
def majority_vote(replies: Sequence[Reply], canonical: Canonical) -> int | None:
    """The best-rewarded reply among those that state the most frequent answer.

    Of equally frequent answers the one stated first wins. Replies without a final answer have no
    vote; where none has one there is no answer.
    """
    return _vote(replies, canonical, lambda index: 1.0)


@voting
def reward_weighted_vote(
    replies: Sequence[Reply], canonical: Canonical, *, temperature: float | None = None
) -> int | None:
    """The best-rewarded reply among those whose answer has the largest sum of rewards.

    With a `temperature` the sum is of exp(reward / temperature), for rewards that may be negative;
    without one a negative reward raises BadInput. Ties and replies without a final answer are as in
    `majority_vote`.
    """
    usable = _usable(replies)
    if temperature is None:
        if any(replies[index].reward < 0 for index in usable):
            raise BadInput(
                "a vote cannot weigh negative rewards; give selection.temperature=<scale of the reward>, "
                "which weighs by exp(reward / temperature)"
            )
        return _vote(replies, canonical, lambda index: replies[index].reward)
    top = max((replies[index].reward for index in usable), default=0.0)
    return _vote(replies, canonical, lambda index: math.exp((replies[index].reward - top) / temperature))


def _usable(replies: Sequence[Reply]) -> list[int]:
    return [index for index, reply in enumerate(replies) if reply.failure is None]


def _vote(replies: Sequence[Reply], canonical: Canonical, weight: Callable[[int], float]) -> int | None:
    ballots: dict[str, list[int]] = {}
    for index in _usable(replies):
        answer = canonical(replies[index].text)
        if answer is not None:
            ballots.setdefault(answer, []).append(index)
    if not ballots:
        return None
    winners = max(ballots.values(), key=lambda indices: sum(map(weight, indices)))
    return max(winners, key=lambda index: replies[index].reward)
