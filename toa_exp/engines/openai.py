"""The engine of remote models: any endpoint that speaks OpenAI's chat completions over HTTP.

Servers are vLLM, SGLang, llama.cpp and Ollama, services OpenAI, OpenRouter and their like. The
request is `POST {base_url}/chat/completions` of https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from toa_exp.draws import Draw, Sample
from toa_exp.engines.answers import Asked, Mends
from toa_exp.engines.client import Answer, Client, Manner, Target
from toa_exp.engines.completions import overflow, prompt_tokens, read
from toa_exp.engines.connection import connect, key_of, url_setting
from toa_exp.engines.endpoints import Endpoint, enter
from toa_exp.engines.limits import LimitFields, Limits
from toa_exp.ensemble import Agent


@dataclass(frozen=True, slots=True)
class _Route:
    """Where an agent's requests go, with what all of them have in common."""

    agent: Agent
    endpoints: Sequence[Endpoint]
    asked: Mapping[str, Asked]  # by URL
    fields: Mapping[str, Any]
    seeded: bool
    token_limit: str
    manner: Manner


class OpenAI:
    """Engine of agents behind OpenAI-compatible endpoints.

    The connection's fields are those of `Connection`; an agent's `options` override them. The further
    ones are those of `endpoints.Limits`: up to `most` requests are under way at an endpoint at once,
    about twice as many as it has places for. Agents on the same URL with the same key share its
    limit. The seconds of a sample are its share of the endpoint's time, waiting for a place left out.

    Construction and sampling raise BadInput for a URL, key, model or option that cannot be used;
    sampling raises Unavailable for faults that may pass and Permanent for those that will not.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        base_url: str | list[str] | None = None,
        key_env: str | None = None,
        omit: list[str] | None = None,
        token_limit: str = "max_tokens",
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        **limits: Unpack[LimitFields],
    ) -> None:
        shared = {
            "base_url": base_url,
            "key_env": key_env,
            "omit": omit or [],
            "token_limit": token_limit,
            "timeout": timeout,
            "connect_timeout": connect_timeout,
        }
        self.agents = agents
        self._limits = Limits.of("engine", limits)
        self._endpoints: dict[tuple[str, str | None], Endpoint] = {}
        self._routes = {name: self._route(agent, shared) for name, agent in agents.items()}
        self._targets = {url: Target.of(f"{url}/chat/completions") for url, _ in self._endpoints}
        self._client = Client()

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw, from the endpoint of its agent that has most room."""
        sample, _ = await self.answer(draw)
        return sample

    async def answer(self, draw: Draw) -> tuple[Sample, bytes]:
        """The sample of a draw, and the body it came in, for what else the endpoint says of it."""
        route = self._routes[draw.request.agent]
        fields = {**route.fields, "messages": draw.messages}
        if route.seeded:
            # 31 bits: some servers keep the seed in 32, and others read numbers as floats.
            fields["seed"] = draw.sampling_seed >> 32
        with await enter(route.endpoints, route.manner.seconds) as visit:
            url = visit.endpoint.url
            answer = await self._fit(url, route, fields)
            content = answer.content
            return read(answer.status, answer.headers, content, route.asked[url], visit.seconds()), content

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _fit(self, url: str, route: _Route, fields: Mapping[str, Any]) -> Answer:
        """The answer to a request; with fewer tokens than asked for where the window leaves room for no more.

        So it would be in a local engine. Where the server did not count the prompt, an answer of one token
        tells how long it is.
        """
        answer = await self._ask(url, route, fields)
        found = overflow(answer.status, answer.content)
        if found is None:
            return answer
        window, prompt = found
        if prompt is None:
            answer = await self._ask(url, route, {**fields, route.token_limit: 1})
            prompt = prompt_tokens(answer.status, answer.content)
        if prompt is None or prompt >= window:
            return answer
        room = min(window - prompt, fields[route.token_limit])
        return await self._ask(url, route, {**fields, route.token_limit: room})

    async def _ask(self, url: str, route: _Route, fields: Mapping[str, Any]) -> Answer:
        content = json.dumps(fields).encode()
        return await self._client.ask(self._targets[url], content, route.manner, route.asked[url])

    def _route(self, agent: Agent, shared: Mapping[str, Any]) -> _Route:
        connection = connect(agent, shared)
        whose, key_env = f"agent {agent.name!r}", connection.key_env
        key = key_of(key_env, whose)
        return _Route(
            agent=agent,
            endpoints=[self._endpoint(url, key_env) for url in connection.urls],
            asked={url: Asked(whose, url, key_env, key, _mends(agent, url)) for url in connection.urls},
            fields=connection.fields(agent),
            seeded="seed" not in connection.omit,
            token_limit=connection.token_limit,
            manner=Manner.of(key, connection.timeout, connection.connect_timeout),
        )

    def _endpoint(self, url: str, key_env: str | None) -> Endpoint:
        return self._endpoints.setdefault((url, key_env), Endpoint(url, self._limits))


def _mends(agent: Agent, url: str) -> Mends:
    return Mends(
        url=url_setting(agent),
        key="engine.key_env",
        unknown=f"does not know model {agent.model!r} or the path",
        compare=f"compare with {url}/models, and base_url with the server's own, which mostly ends in /v1",
        refused=f"mend ensemble.agents.{agent.name}.sampling, or leave out what the endpoint does not know "
        f"with options.omit",
    )
