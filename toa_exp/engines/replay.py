"""The engine that draws nothing: whatever the store does not hold is named and missing."""

from __future__ import annotations

from collections.abc import Mapping

from toa_exp.draws import Draw, Sample
from toa_exp.ensemble import Agent
from toa_exp.errors import Permanent


class Replay:
    """Engine for rerunning from the store alone: no model is loaded and nothing is drawn.

    The runner asks an engine only for what the store lacks, so every call is a missing draw. An
    agent is still identified by its model, so a local model's folder must be there.
    """

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self.agents = agents

    async def sample(self, draw: Draw) -> Sample:
        """Raises Permanent, with what is missing."""
        request = draw.request
        raise Permanent(
            f"the store has no draw {draw.key.hex()}: problem {draw.problem.id!r}, agent "
            f"{request.agent!r}, {request.template}, occurrence {draw.occurrence}, seed {draw.seed}"
        )

    async def close(self) -> None:
        """Nothing is held."""
