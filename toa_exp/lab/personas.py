"""Who knows what: the strengths that the agents' training texts give them.

Competence here is by design. A piece of knowledge (an operation with one last digit, say) that an agent
has is mostly right in its texts; where it lacks one it has a misconception, the same mistake always, so
that luck does not give it what it does not know. What search makes of such agents is measured, the
strengths are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from toa_exp.lab.domain import Part


@dataclass(frozen=True, slots=True)
class Persona:
    """One agent's strengths.

    `strong` is its skill, in which it is right with probability `strong_right`. It knows each piece of
    knowledge of other skills with probability `share`, and is right there with probability
    `known_right`; in the others it never is. Refining a draft it recomputes its own skill: a wrong value
    is repaired with probability `repair` and a right one kept with `keep`; everything else it copies,
    with probability `copy`.
    """

    name: str
    strong: str
    strong_right: float = 0.95
    share: float = 0.35
    known_right: float = 0.9
    repair: float = 0.5
    keep: float = 0.995
    copy: float = 0.995

    def right(self, table: tuple[str, str]) -> float:
        """The probability that a fresh value of this piece of knowledge is right."""
        if table[0] == self.strong:
            return self.strong_right
        return self.known_right if self.knows(table) else 0.0

    def mistake(self, part: Part, rng: Random) -> str:
        """A wrong value of a part: that of its misconception, or any in what it knows."""
        if self.knows(part.table):
            return part.slip(rng)
        return part.misconception(Random(f"{self.name}/{part.table}/slip"))

    def knows(self, table: tuple[str, str]) -> bool:
        """Whether a piece of knowledge is of its own skill, or one of those of other skills that it knows."""
        return table[0] == self.strong or Random(f"{self.name}/{table}").random() < self.share


def most_frequent(values: Sequence[str]) -> str:
    """The most frequent value, the first of several."""
    return max(dict.fromkeys(values), key=values.count)
