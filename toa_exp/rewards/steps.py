"""Answers as steps of a chat: where in its tokens the answer begins and each of its steps ends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from toa_exp.engines import loading
from toa_exp.errors import BadInput, choose
from toa_exp.rewards.base import Range
from toa_exp.tree import normalise

UNITS = ["probability", "log_odds"]
_NEAREST = 1e-6  # to 0 and 1 that a probability counts as, so that log-odds are finite


@dataclass(frozen=True, slots=True)
class Scale:
    """What a probability is shown as: itself or its log-odds (`unit`), times `scale`."""

    unit: str
    scale: float

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise choose("reward.unit", self.unit, UNITS)
        if self.scale <= 0:
            raise BadInput(f"reward.scale={self.scale} must be above 0")

    @property
    def range(self) -> Range:
        """Where the scores lie; of log-odds those of probabilities from 0.02 to 0.98."""
        low, high = (0.0, 1.0) if self.unit == "probability" else (-4.0, 4.0)
        return Range(self.scale * low, self.scale * high)

    def __call__(self, probability: float) -> float:
        """The score that stands for a probability."""
        if self.unit == "probability":
            return self.scale * probability
        inside = min(max(probability, _NEAREST), 1.0 - _NEAREST)
        return self.scale * math.log(inside / (1.0 - inside))

    def of_log_odds(self, value: float) -> float:
        """The score that stands for a probability of these log-odds."""
        return self.scale * (normalise(value, 1.0) if self.unit == "probability" else value)


@dataclass(frozen=True, slots=True)
class StepChat:
    """Token ids of a chat; the answer begins at `start`, and `ends` is where its steps are read."""

    ids: list[int]
    start: int
    ends: list[int]


def compiled(separator: str) -> re.Pattern[str]:
    """The regular expression that ends a step; raises BadInput where it is none."""
    try:
        return re.compile(separator)
    except re.error as error:
        raise BadInput(f"reward.separator={separator!r} is no regular expression: {error}") from error


def check_fast(tokenizer: Any) -> None:
    """Raise BadInput for a tokenizer that does not tell where in a text its tokens are."""
    if not tokenizer.is_fast:
        raise BadInput("reward: its tokenizer tells no positions; a fast tokenizer (tokenizer.json) does")


def token_places(offsets: list[tuple[int, int]], ends: list[int]) -> list[int]:
    """The tokens that hold the last characters before `ends`, which rise."""
    places, place = [], 0
    for end in ends:
        while place + 1 < len(offsets) and offsets[place + 1][0] < end:
            place += 1
        places.append(place)
    return places


class StepEncoder:
    """Renders problem and answer in a tokenizer's chat template, and finds the answer's steps.

    A step ends with each match of the regular expression `separator`, which belongs to it, and with
    the answer. What closes the assistant's message belongs to no step, and an empty answer has none.
    """

    def __init__(self, tokenizer: Any, separator: str) -> None:
        check_fast(tokenizer)
        self._separator = compiled(separator)
        self._tokenizer = tokenizer

    def __call__(self, prompt: str, text: str) -> StepChat:
        """The chat of an answer. Raises BadInput where the template does not keep the answer as it is."""
        asked = [{"role": "user", "content": prompt}]
        opening = loading.render(self._tokenizer, asked, "reward", reply=True)
        answered = [*asked, {"role": "assistant", "content": text}]
        whole = loading.render(self._tokenizer, answered, "reward", reply=False)
        if not whole.startswith(opening + text):
            raise BadInput(
                "reward: its chat template changes answers, so that their steps cannot be found in it; "
                "choose reward=classifier, or mend the template"
            )
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        start, stop = len(opening), len(opening) + len(text)
        breaks = [start + match.end() for match in self._separator.finditer(text)]
        if text and (not breaks or breaks[-1] < stop):
            breaks.append(stop)
        offsets = encoded["offset_mapping"]
        first = next((n for n, (_, end) in enumerate(offsets) if end > start), len(offsets))
        return StepChat(encoded["input_ids"], first, token_places(offsets, breaks))
