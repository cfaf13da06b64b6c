"""A small OpenAI-compatible server of the transformers engine: what needs no more than this package.

It answers `/v1/models` and `/v1/chat/completions`, in float32 always with the same text for the same
request and seed. For a large model take vLLM's own server.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from toa_exp.core import Problem, Request
from toa_exp.cost import text_part
from toa_exp.draws import Draw, Message
from toa_exp.engines.base import Engine
from toa_exp.ensemble import Agent, model_config
from toa_exp.errors import BadInput
from toa_exp.serving.web import Failure, application, check_fields

_FIELDS = [
    "model",
    "messages",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "n",
    "stream",
    "user",
]
_UNLIMITED = 2**31  # tokens; the model's window ends an answer first


class Chat:
    """Answers chat completions from models that an engine runs.

    `make` builds the engine from a mapping of agents, to which every request adds one of its own for
    as long as it takes, since it says itself how to sample.
    """

    def __init__(self, agents: Mapping[str, Agent], make: Callable[[Mapping[str, Agent]], Engine]) -> None:
        self._models = {agent.model: agent for agent in agents.values()}
        self._agents: dict[str, Agent] = dict(agents)
        self._engine = make(self._agents)
        self._numbers = itertools.count()
        self._chance = random.SystemRandom()

    @property
    def models(self) -> list[str]:
        """The names of the models, as requests give them."""
        return list(self._models)

    async def probe(self) -> None:
        """Let every model write a token, so that it is loaded; raises what the engine raises."""
        for model in self._models:
            messages = [{"role": "user", "content": "1"}]
            await self.complete({"model": model, "messages": messages, "max_tokens": 1, "seed": 0})

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion that a request asks for. Raises BadInput and Failure for what it may not ask."""
        check_fields(body, _FIELDS)
        base = self._models.get(str(body.get("model")))
        if base is None:
            known = ", ".join(self._models)
            message = f"The model `{body.get('model')}` does not exist. There are: {known}"
            raise Failure(404, message, "model_not_found")
        if body.get("n") not in (None, 1) or body.get("stream"):
            raise BadInput("n above 1 and stream are not served; send a request for each answer")
        messages = _messages(body.get("messages"))
        agent = replace(base, sampling=_sampling(body))
        agent.check_sampling()
        name = f"request {next(self._numbers)}"
        draw = _draw(name, messages, _integer(body, "seed", self._chance.getrandbits(31)))
        self._agents[name] = agent
        try:
            sample = await self._engine.sample(draw)
        finally:
            del self._agents[name]
        usage = sample.usage
        if sample.failure is not None:
            raise _too_long(base)
        window = _window(base.model, base.revision)
        room = math.inf if window is None else window - usage.prompt_tokens
        whole = usage.completion_tokens < min(agent.sampling["max_tokens"], room)
        return {
            "id": f"chatcmpl-{name.replace(' ', '-')}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": base.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": sample.text},
                    "finish_reason": "stop" if whole else "length",
                }
            ],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }

    async def close(self) -> None:
        """Free the models."""
        await self._engine.close()


def chat_app(chat: Chat) -> web.Application:
    """The application of a chat; it listens once all models are loaded."""

    async def prepare(_: web.Application) -> None:
        await chat.probe()

    async def close(_: web.Application) -> None:
        await chat.close()

    app = application({"/v1/chat/completions": chat.complete}, chat.models)
    app.on_startup.append(prepare)
    app.on_cleanup.append(close)
    return app


def _messages(given: Any) -> list[Message]:
    wellformed = isinstance(given, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in given
    )
    if not given or not wellformed:
        raise BadInput('messages is a list of {"role": ..., "content": <text>}, one at least')
    return [{"role": one["role"], "content": one["content"]} for one in given]


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """Temperature, top_p and max_tokens of a request, as OpenAI's API has them where they are left out."""
    limit = _integer(body, "max_completion_tokens", _integer(body, "max_tokens", _UNLIMITED))
    return {
        "temperature": _number(body, "temperature"),
        "top_p": _number(body, "top_p"),
        "max_tokens": limit,
    }


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{name}={value!r} is no number")
    return float(value)


def _integer(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise BadInput(f"{name}={value!r} is no integer")
    return value


def _draw(name: str, messages: list[Message], seed: int) -> Draw:
    """A draw whose engines are given this seed; nothing else of it is read."""
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed={seed} is not between 0 and 2**63")
    key = (seed << 1).to_bytes(8, "little")
    return Draw(key, Problem("", ""), Request(name), messages, b"", b"", 0, seed)


def _too_long(agent: Agent) -> Failure:
    """The refusal of a prompt over the window, as clients know it from vLLM."""
    window = _window(agent.model, agent.revision)
    return Failure(
        400,
        f"This model's maximum context length is {window} tokens. However, your prompt leaves no room in it "
        f"for an answer. Please reduce the length of the input prompt.",
        "context_length_exceeded",
    )


@functools.cache
def _window(model: str, revision: str | None) -> int | None:
    """The most tokens that a model reads and writes together; None where its config sets no limit."""
    window: int | None = text_part(model_config(model, revision, "the server")).get("max_position_embeddings")
    return window
