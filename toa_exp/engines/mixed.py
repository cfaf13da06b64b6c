"""The engine of a mixed ensemble, whose agents name engines of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from toa_exp.draws import Draw, Sample
from toa_exp.engines.base import Engine, report
from toa_exp.ensemble import Agent
from toa_exp.errors import told_at


class Mixed:
    """Several engines as one: every draw goes to the engine that has its agent.

    `agents` are those of all engines, in the order that searches see.
    """

    def __init__(self, agents: Mapping[str, Agent], engines: Sequence[Engine]) -> None:
        self.agents = agents
        self.engines = engines
        self._by_agent = {name: engine for engine in engines for name in engine.agents}

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw; raises what the agent's engine raises."""
        agent = draw.request.agent
        with told_at("engine", self.agents[agent].place):
            return await self._by_agent[agent].sample(draw)

    def report(self) -> list[str]:
        """What the engines have to say of how they ran."""
        return [line for engine in self.engines for line in report(engine)]

    async def close(self) -> None:
        """Close every engine, also where another one fails to."""
        async with AsyncExitStack() as held:
            for engine in self.engines:
                held.push_async_callback(engine.close)
