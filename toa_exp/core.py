"""The types that methods, tasks, engines and rewards share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One question of a task.

    `id` is unique within the task. `reference` is whatever the task's scoring needs (None where
    there is nothing to compare with) and `meta` holds further fields of the source.
    """

    id: str
    prompt: str
    reference: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """A sampling decision: `agent` answers from `template`, given the replies in `parents`.

    `template` is "direct" (no parents), "refine" (one), "aggregate" (several) or a task's own.
    """

    agent: str
    template: str = "direct"
    parents: tuple[Reply, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a sample took: read (`prompt_tokens`) and written (`completion_tokens`)."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A scored sample.

    `failure` names why there is no usable text ("context_window", "content_filter", ...). Then
    `reward` is -inf: the reply has its cost, but is never a parent and never the answer.
    """

    request: Request
    text: str
    reward: float
    usage: Usage
    failure: str | None = None


Search = Generator[list[Request], list[Reply], None]
"""A running method: yields batches of requests and is sent their replies in the same order."""

Method = TypeVar("Method", bound=Callable[..., Search])


def anytime(method: Method) -> Method:
    """Declare that a run at a smaller budget is a prefix of a run at a larger one.

    The runner then runs the method once, at the largest budget, and reads the others off. A method
    whose decisions depend on its budget must not carry this mark.
    """
    method.anytime = True  # type: ignore[attr-defined]
    return method


def usable(replies: list[Reply]) -> list[Reply]:
    """The replies that may be parents or the answer: those without a failure."""
    return [reply for reply in replies if reply.failure is None]


def best(replies: list[Reply]) -> Reply | None:
    """The usable reply with the highest reward, the first of several; None where none is usable."""
    return max(usable(replies), key=lambda reply: reply.reward, default=None)
