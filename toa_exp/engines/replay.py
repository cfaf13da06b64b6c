"""The engine that draws nothing: whatever the store does not hold is named and missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toa_exp.draws import Draw, Sample
from toa_exp.engines.vllm_settings import Settings
from toa_exp.ensemble import Agent
from toa_exp.errors import Permanent


class Replay:
    """Engine for rerunning from the store alone: no model is loaded and nothing is drawn.

    The runner asks an engine only for what the store lacks, so every call is a missing draw. An
    agent is still identified by its model, so a local model's folder must be there, and by what its
    options say of that to the engines that run it here.
    """

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self.agents = agents

    @staticmethod
    def deciding(agent: Agent, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What of an agent's options had a say in its samples, whichever engine took them."""
        if agent.simulated:
            return {}
        known = Settings.__dataclass_fields__
        options = {name: value for name, value in agent.options.items() if name in known}
        return Settings.of(
            {}, options, f"ensemble.agents.{agent.name}.options", f"agent {agent.name!r}"
        ).deciding()

    async def sample(self, draw: Draw) -> Sample:
        """Raises Permanent, with what is missing."""
        request = draw.request
        made = f"ensemble.agents.{request.agent}.made={{dtype: ..., quantization: ...}}"
        hint = (
            f". Was it never drawn? Run the same with the agent's own engine first. Did that have settings "
            f"that decide samples? Give them here: +{made}"
        )
        raise Permanent(
            f"the store has no draw {draw.key.hex()}: problem {draw.problem.id!r}, agent "
            f"{request.agent!r}, {request.template}, occurrence {draw.occurrence}, seed {draw.seed}"
            f"{'' if self.agents[request.agent].simulated else hint}"
        )

    async def close(self) -> None:
        """Nothing is held."""
