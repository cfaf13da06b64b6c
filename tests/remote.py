"""Draws from a fake endpoint on loopback: what tests of all that is remote share."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_endpoint import Answer, Asked, completion, serving
from helpers import SMALL, lines

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines.openai import OpenAI
from toa_exp.ensemble import Agent

KEY = "sk-not-a-real-key-0123456789"


FAST = {"pause": 0.002}


OK = Answer(completion())


def alone(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """No proxy on the way, and a key in the environment variable `key`."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(key, KEY)


def agent(name: str = "ash", model: str = "m", options: dict | None = None, **sampling: object) -> Agent:
    fields = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 40} | sampling
    return Agent(name, model, None, fields, architecture=SMALL, options=options or {})


def draw(number: int = 0, name: str = "ash") -> Draw:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    asked, prompt = digest(name.encode()), digest(canonical(messages))
    key = draw_key("p", asked, prompt, number, 0)
    return Draw(key, Problem("p", "?"), Request(name), messages, asked, prompt, number, 0)


def ask(
    respond: Callable[[Asked], Answer] | Answer, number: int = 1, one: Agent | None = None, **settings: object
) -> tuple[list[Sample | BaseException], list[Asked]]:
    """What comes of draws that are all asked for at once, and the requests that the server got."""
    one = one or agent()
    with serving(respond if callable(respond) else lambda _: respond) as server:
        return samples([server.url], number, one, **settings), server.asked


def samples(urls: Sequence[str], number: int, one: Agent, **settings: object) -> list[Sample | BaseException]:
    async def work() -> list[Sample | BaseException]:
        engine = OpenAI({one.name: one}, base_url=list(urls), **{**FAST, **settings})
        try:
            draws = [engine.sample(draw(i)) for i in range(number)]
            return await asyncio.wait_for(asyncio.gather(*draws, return_exceptions=True), 30)
        finally:
            await engine.close()

    return asyncio.run(work())


def error(answer: Answer, **settings: object) -> BaseException:
    (result,), _ = ask(answer, **settings)
    assert isinstance(result, BaseException), result
    return result


class Closing:
    """Closes its engine once nothing is under way, as `toa-exp run` does at the end."""

    def __init__(self, engine: OpenAI) -> None:
        self.agents = engine.agents
        self._engine = engine
        self._now = 0

    async def sample(self, one: Draw) -> Sample:
        self._now += 1
        try:
            return await self._engine.sample(one)
        finally:
            self._now -= 1
            if not self._now:
                await self._engine.close()


ENSEMBLE = (
    "ensemble.agents={{ash:{{model:m,architecture:{shape},options:{{key_env:MY_PROVIDER}}}},"
    "elm:{{model:n,architecture:{shape}}}}}"
)


SHAPE = json.dumps(SMALL).replace('"', "").replace(" ", "")


def arguments(path: Path, url: str) -> list[str]:
    return [
        "run", "task=jsonl", f"task.path={path}", "ensemble=simulated", "engine=openai", "reward=verifier",
        ENSEMBLE.format(shape=SHAPE), f"engine.base_url={url}", "engine.start=2", "method=toa",
        "budget.samples=6", "backoff=0.01",
    ]  # fmt: skip


def seeded(asked: Asked) -> Answer:
    """An answer that depends on the draw alone."""
    return Answer(completion(f"Answer: {asked.body['seed'] % 7}"), delay=0.005)


def trajectory(path: Path) -> list[object]:
    """What was drawn and chosen; seconds are measured, and differ."""
    return [(line["problem"], line["samples"], line["answer"]) for line in lines(path.read_text())]
