"""What the recipe asks of a task in miniature: problems of parts, each part with one right value.

A domain writes and reads answers part by part. Everything else (who is strong in what, refinement,
aggregation, rewards) is the same for all tasks and knows parts and values only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

from toa_exp.errors import BadInput

UNLABELLED = float("nan")
SPAN = (2, 8)
"""The fewest and the most parts of a problem."""
_TEST_SHARE = 0.2
_PATIENCE = 20_000  # draws without a new problem, after which there are none left


class Part(Protocol):
    """One part of a problem."""

    @property
    def table(self) -> tuple[str, str]:
        """The piece of knowledge that it takes: the skill, and which piece of it."""
        ...

    def answer(self, rng: Random) -> str:
        """A right value; `rng` chooses where there are several."""
        ...

    def accepts(self, value: str) -> bool:
        """Whether a value is right."""
        ...

    def slip(self, rng: Random) -> str:
        """A plausible wrong value."""
        ...

    def misconception(self, rng: Random) -> str:
        """A wrong value by a rule that `rng` chooses: the same one for equal parts, and a like one for
        the other parts of its `table`."""
        ...


class Domain(Protocol):
    """A task in miniature."""

    name: str

    def draw(self, rng: Random, parts: int) -> str:
        """A random prompt of so many parts."""
        ...

    def parse(self, prompt: str) -> Sequence[Part]:
        """The parts of a prompt; raises ValueError where it is none."""
        ...

    def solution(self, parts: Sequence[Part], values: Sequence[str]) -> str:
        """The answer in which the parts have these values."""
        ...

    def values(self, parts: Sequence[Part], text: str) -> list[str | None]:
        """The value that an answer gives each part, None where it cannot be told."""
        ...

    def final(self, text: str) -> str | None:
        """What an answer comes down to: equal ones are equal strings; None where it says nothing."""
        ...

    def right(self, prompt: str, text: str) -> list[bool]:
        """Part by part whether the answer is right; it can be longer than the parts (then with False)."""
        ...

    def marks(self, prompt: str, text: str) -> list[float]:
        """For every character of an answer 1.0 while its part is right so far, else 0.0, or UNLABELLED."""
        ...


class Listing:
    """What domains have in common whose answers name the parts' values in one sentence."""

    def solution(self, parts: Sequence[Part], values: Sequence[str]) -> str:
        """The values in order."""
        return ", ".join(values) + "."

    def values(self, parts: Sequence[Part], text: str) -> list[str | None]:
        """The values, all None where their number differs from that of the parts."""
        values = listed(text)
        return list(values) if len(values) == len(parts) else [None] * len(parts)

    def final(self, text: str) -> str | None:
        """The whole text."""
        return text


def listed(text: str) -> list[str]:
    """What a sentence such as `bear, night.` lists."""
    return text.removesuffix(".").split(", ")


def is_test(prompt: str) -> bool:
    """Whether a problem is for tests; training never sees it. A hash of the prompt decides."""
    return int.from_bytes(blake2b(prompt.encode(), digest_size=4).digest()) < _TEST_SHARE * 2**32


def check_problems(parts: int, count: int) -> None:
    """Raise BadInput for problems of which there are none: parts outside SPAN, or fewer than one."""
    low, high = SPAN
    if not isinstance(parts, int) or not low <= parts <= high:
        raise BadInput(f"task.parts={parts}: give a number from {low} to {high}")
    if not isinstance(count, int) or count < 1:
        raise BadInput(f"task.problems={count}: give a number, 1 or more")


def problems(domain: Domain, seed: int | str, parts: int | tuple[int, int], *, test: bool) -> Iterator[str]:
    """Distinct prompts of one split, of `parts` parts or of a range of them, each as likely.

    Raises BadInput where they are used up.
    """
    rng = Random(f"{domain.name}/{seed}/{parts}/{test}")
    seen: set[str] = set()
    vain = 0
    while vain < _PATIENCE:
        prompt = domain.draw(rng, parts if isinstance(parts, int) else rng.randint(*parts))
        vain += 1
        if is_test(prompt) == test and prompt not in seen:
            vain = 0
            seen.add(prompt)
            yield prompt
    raise BadInput(
        f"there are only {len(seen)} {domain.name} problems of {parts} parts; ask for at most "
        f"task.problems={len(seen)}, or for more parts (task.parts)"
    )


def grade(domain: Domain, prompt: str, text: str) -> tuple[float, float]:
    """Accuracy (1.0 where every part is right) and the share of right parts."""
    right = domain.right(prompt, text)
    return float(all(right)), sum(right) / len(right)
