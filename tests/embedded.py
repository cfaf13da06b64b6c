"""Draws from engine=transformers on tiny random models: what tests of it share."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines.transformers import Transformers
from toa_exp.ensemble import Agent

CPU = {"device": "cpu"}


def agent(folder: Path, name: str = "ash", options: dict | None = None, **sampling: float) -> Agent:
    fields = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40} | sampling
    return Agent(name, str(folder), None, fields, options=options or {})


def draw(text: str, occurrence: int = 0, name: str = "ash") -> Draw:
    messages = [{"role": "user", "content": text}]
    asked, prompt = digest(name.encode()), digest(canonical(messages))
    key = draw_key("p", asked, prompt, occurrence, 0)
    return Draw(key, Problem("p", text), Request(name), messages, asked, prompt, occurrence, 0)


def sample_all(
    agents: Agent | Sequence[Agent], draws: Sequence[Draw], **settings: object
) -> list[Sample | BaseException]:
    """The samples, or errors, of draws that are all asked for at once."""
    members = [agents] if isinstance(agents, Agent) else agents

    async def run() -> list[Sample | BaseException]:
        engine = Transformers({member.name: member for member in members}, **{**CPU, **settings})
        try:
            return await asyncio.gather(*map(engine.sample, draws), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


def texts(samples: Sequence[Sample | BaseException]) -> list[str]:
    for sample in samples:
        if isinstance(sample, BaseException):
            raise sample
    return [sample.text for sample in samples]
