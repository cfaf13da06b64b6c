"""The engine of remote models: any endpoint that speaks OpenAI's chat completions over HTTP.

Servers are vLLM, SGLang, llama.cpp and Ollama, services OpenAI, OpenRouter and their like. The
request is `POST {base_url}/chat/completions` of https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.request import getproxies, proxy_bypass

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from toa_exp.draws import Draw, Sample
from toa_exp.engines.completions import Asked, read, room_left, shorten
from toa_exp.engines.connection import connect, key_of
from toa_exp.engines.endpoints import Endpoint, Limits, Refused, enter
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Unavailable

_KEEPALIVE = 4.0  # seconds; servers on uvicorn drop a connection that is idle for 5


@dataclass(frozen=True, slots=True)
class _Route:
    """Where an agent's requests go, with what all of them have in common."""

    agent: Agent
    endpoints: Sequence[Endpoint]
    fields: Mapping[str, Any]
    seeded: bool
    token_limit: str
    timeout: ClientTimeout
    seconds: float
    key_env: str | None
    key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


class OpenAI:
    """Engine of agents behind OpenAI-compatible endpoints.

    The connection's fields are those of `Connection`; an agent's `options` override them. Between
    `start` and `most` requests are under way at an endpoint at once, as many as it answers in time
    (see `toa_exp.engines.endpoints`); after a refusal it rests for `pause` seconds, doubling, or for
    as long as it asks, and after `longest_wait` it is given up. Agents on the same URL with the same
    key share its limit. The seconds of a sample are its share of the endpoint's time, waiting for a
    place left out.

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
        start: int = 16,
        most: int = 256,
        pause: float = 0.5,
        longest_wait: float = 600.0,
    ) -> None:
        if not 1 <= start <= most:
            raise BadInput(f"engine.start={start} and engine.most={most}: give 1 <= start <= most")
        shared = {
            "base_url": base_url,
            "key_env": key_env,
            "omit": omit or [],
            "token_limit": token_limit,
            "timeout": timeout,
            "connect_timeout": connect_timeout,
        }
        self.agents = agents
        self._limits = Limits(start, most, pause, longest_wait)
        self._endpoints: dict[tuple[str, str | None], Endpoint] = {}
        self._routes = {name: self._route(agent, shared) for name, agent in agents.items()}
        self._urls = {endpoint.url: _Target.of(endpoint.url) for endpoint in self._endpoints.values()}
        self._session: ClientSession | None = None

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
        with await enter(route.endpoints, route.seconds) as visit:
            url = visit.endpoint.url
            asked = Asked(route.agent.name, route.agent.model, url, route.key_env, route.key)
            status, headers, content = await self._post(self._urls[url], route, fields, asked)
            if status == 400 and (room := room_left(status, content)) is not None:
                # The prompt fits, as it would in a local engine, but not with max_tokens behind it.
                fields[route.token_limit] = min(room, fields[route.token_limit])
                status, headers, content = await self._post(self._urls[url], route, fields, asked)
            return read(status, headers, content, asked, visit.seconds()), content

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(
        self, target: _Target, route: _Route, fields: Mapping[str, Any], asked: Asked
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the response. Raises Refused or Unavailable without one."""
        if self._session is None:  # sessions belong to the loop that is running
            connector = TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE)
            self._session = ClientSession(connector=connector, cookie_jar=DummyCookieJar())
        try:
            async with self._session.post(
                target.url,
                data=json.dumps(fields).encode(),
                headers=route.headers,
                timeout=route.timeout,
                proxy=target.proxy,
                allow_redirects=False,
            ) as response:
                return response.status, response.headers, await response.read()
        except TimeoutError:
            raise Refused(f"{asked} gave no answer within {route.seconds:g} s") from None
        except ClientConnectorError as error:
            raise Refused(f"{asked} cannot be reached: {shorten(str(error), asked)}") from None
        except (ClientError, OSError) as error:
            # No `from error`: it may hold the request's headers.
            what = shorten(str(error) or type(error).__name__, asked)
            raise Unavailable(f"{asked} broke the connection: {what}") from None

    def _route(self, agent: Agent, shared: Mapping[str, Any]) -> _Route:
        connection = connect(agent, shared)
        key = key_of(connection.key_env, agent)
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return _Route(
            agent=agent,
            endpoints=[self._endpoint(url, connection.key_env) for url in connection.urls],
            fields=connection.fields(agent),
            seeded="seed" not in connection.omit,
            token_limit=connection.token_limit,
            timeout=ClientTimeout(total=connection.timeout, connect=connection.connect_timeout),
            seconds=connection.timeout,
            key_env=connection.key_env,
            key=key,
            headers=headers,
        )

    def _endpoint(self, url: str, key_env: str | None) -> Endpoint:
        return self._endpoints.setdefault((url, key_env), Endpoint(url, self._limits))


@dataclass(frozen=True, slots=True)
class _Target:
    """The URL that is posted to, and the proxy that the environment names for it."""

    url: URL
    proxy: str | None = field(repr=False)

    @classmethod
    def of(cls, base_url: str) -> _Target:
        url = URL(f"{base_url}/chat/completions")
        proxy = None if proxy_bypass(str(url.host)) else getproxies().get(url.scheme)
        return cls(url, proxy)
