"""The simulated agents' own reward: the latent quality, seen through noise."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from toa_exp.core import Problem
from toa_exp.cost import Architecture, architecture
from toa_exp.draws import Score, digest, encode
from toa_exp.engines.simulator import quality_of
from toa_exp.rewards.base import Range

_NORMAL = NormalDist()


class SimulatedReward:
    """scale x (quality + noise x a standard normal that the text alone decides).

    `tokens_per_second` gives the seconds; a text of c characters counts as c / 4 tokens.
    `architecture` (fields of a config.json) is what its FLOPs are counted from, None for none.
    """

    warms_up = False  # it reads simulated answers alone

    def __init__(
        self,
        *,
        noise: float,
        scale: float,
        tokens_per_second: float,
        architecture: Mapping[str, Any] | None = None,
        task: object = None,
    ) -> None:
        self._noise = noise
        self._scale = scale
        self._speed = tokens_per_second
        self.shape: Architecture | None = _shape(architecture)
        self.range = Range(-4.0 * scale, 4.0 * scale)

    def fingerprint(self) -> Mapping[str, Any]:
        """Noise and scale."""
        return {"reward": "simulated", "noise": self._noise, "scale": self._scale}

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of a simulated text."""
        chance = int.from_bytes(digest(encode(problem.id), encode(text))[:7], "little") + 0.5
        noise = self._noise * _NORMAL.inv_cdf(chance / 2**56)
        tokens = (len(problem.prompt) + len(text)) // 4 + 1
        return Score(self._scale * (quality_of(text) + noise), tokens, tokens / self._speed)

    async def close(self) -> None:
        """Nothing is held."""


def _shape(config: Mapping[str, Any] | None) -> Architecture | None:
    return None if config is None else architecture(config, output_head=False)
