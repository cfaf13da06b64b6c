"""Who knows what: the strengths that the agents' training texts give them.

Competence here is by design. An agent's texts are right where it is strong, and at a rate where it is
not: a piece of knowledge (an operation with one last digit, say) it knows is mostly right, one it
does not know is mostly a slip. What search makes of such agents is measured, the strengths are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from toa_exp.lab.domain import Part


@dataclass(frozen=True, slots=True)
class Persona:
    """One agent's strengths.

    `strong` is its skill, in which it is right with probability `strong_right`. Of the pieces of
    knowledge of other skills it knows `share`; those are right with probability `known_right` and
    the others with `unknown_right`. An agent with `misconceptions` makes the same mistake whenever it is
    wrong in one it does not know, so that luck does not give it what it does not know; else any. Refining
    a draft it recomputes its own skill: a wrong value is repaired with probability `repair` and a right
    one kept with `keep`; everything else it copies, with probability `copy`.
    """

    name: str
    strong: str
    strong_right: float = 0.95
    share: float = 0.35
    known_right: float = 0.9
    unknown_right: float = 0.0
    misconceptions: bool = True
    repair: float = 0.5
    keep: float = 0.995
    copy: float = 0.995

    def right(self, table: tuple[str, str]) -> float:
        """The probability that a fresh value of this piece of knowledge is right."""
        if table[0] == self.strong:
            return self.strong_right
        return self.known_right if self.knows(table) else self.unknown_right

    def slip(self, part: Part, rng: Random) -> str:
        """A wrong value of a part."""
        same = self.misconceptions and not self.knows(part.table)
        return part.slip(Random(f"{self.name}/{part.table}/slip") if same else rng)

    def knows(self, table: tuple[str, str]) -> bool:
        """Whether a piece of knowledge is of its own skill, or one of those of other skills that it knows."""
        return table[0] == self.strong or Random(f"{self.name}/{table}").random() < self.share


def most_frequent(values: Sequence[str]) -> str:
    """The most frequent value, the first of several."""
    return max(dict.fromkeys(values), key=values.count)
