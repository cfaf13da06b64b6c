"""How many requests an endpoint is given at once, and how long it is waited for: what a user says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from toa_exp.errors import BadInput


class LimitFields(TypedDict, total=False):
    """The fields of `Limits`, as engines and rewards take them among their keywords."""

    start: int
    most: int
    pause: float
    longest_wait: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How the number of requests under way at an endpoint is found.

    It starts at `start` and is `most` at most, also at the start. `pause` are the seconds without new
    requests after a refusal, doubling with each further one, or more where the endpoint asks for it.
    One that refuses is waited for; one that asks for more than `longest_wait` seconds, or gives no
    answer for so long, is given up.
    """

    start: int = 16
    most: int = 256
    pause: float = 0.5
    longest_wait: float = 600.0
    owner: str = "engine"  # whose fields they are, for errors

    @classmethod
    def of(cls, what: str, fields: LimitFields) -> Limits:
        """The limits as the fields of `what` give them; raises BadInput for numbers that cannot be."""
        made = cls(**fields, owner=what)
        if min(made.start, made.most) < 1:
            raise BadInput(f"{what}.start={made.start} and {what}.most={made.most}: give 1 <= start <= most")
        if not 0 <= made.pause < math.inf or not 0 <= made.longest_wait < math.inf:
            raise BadInput(f"{what}.pause and {what}.longest_wait are seconds, 0 or more")
        return made
