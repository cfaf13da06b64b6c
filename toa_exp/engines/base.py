"""What the runner asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from toa_exp.draws import Draw, Sample
from toa_exp.ensemble import Agent


class Engine(Protocol):
    """Draws samples from agents.

    `sample` is called for many draws at once and batches them as it likes. A draw that cannot have
    a text (prompt over the context window, content filter) is a Sample with `failure`. Raises
    Unavailable for a fault that may pass (the runner tries again) and Permanent for one that will not.
    """

    agents: Mapping[str, Agent]

    async def sample(self, draw: Draw) -> Sample:
        """The sample of one draw."""
        ...

    async def close(self) -> None:
        """Free what the engine holds."""
        ...


def report(engine: Engine) -> list[str]:
    """What an engine has to say of how it ran, such as swaps of models; asked before it is closed."""
    say = getattr(engine, "report", None)
    return [] if say is None else list(say())
