"""How an agent behind an endpoint is reached: URLs, key, and what the endpoint takes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yarl import URL

from toa_exp.build import call
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose
from toa_exp.redact import without_secrets

_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_OMITTABLE = ["seed", "temperature", "top_p"]
_TOKEN_LIMITS = ["max_tokens", "max_completion_tokens"]
_OWN_FIELDS = ["model", "messages", "n", "stream", *_OMITTABLE, *_TOKEN_LIMITS]


@dataclass(frozen=True, slots=True)
class Connection:
    """How an agent is reached; nothing of it decides a sample.

    `base_url` is one URL or several of servers that share the load, up to and with /v1. `key_env`
    names the environment variable that holds the key, None for a server without. `omit` are fields
    that the endpoint refuses: seed, and top_p or temperature where sampling has them at 1, OpenAI's
    default. `token_limit` is what the endpoint calls the limit of an answer: max_tokens or
    max_completion_tokens. `timeout` and `connect_timeout` are seconds until the whole answer, and
    until the connection, must be there.
    """

    base_url: str | list[str] | None
    key_env: str | None
    omit: list[str]
    token_limit: str
    timeout: float
    connect_timeout: float

    @property
    def urls(self) -> list[str]:
        """The base URLs, each once, without a slash at the end."""
        return urls_of(self.base_url)

    def fields(self, agent: Agent) -> dict[str, Any]:
        """What every request of an agent says; all that decides its samples, and no more."""
        sampling = {key: agent.sampling[key] for key in ("temperature", "top_p") if key not in self.omit}
        extra = agent.sampling.get("extra_body", {})
        return {"model": agent.model, **sampling, self.token_limit: agent.sampling["max_tokens"], **extra}


def urls_of(base_url: str | list[str] | None) -> list[str]:
    """One URL or several, each once, without a slash at the end."""
    given = [base_url] if isinstance(base_url, str) else base_url or []
    return list(dict.fromkeys(url.rstrip("/") for url in given))


def connection_of(agent: Agent, engine: Mapping[str, Any]) -> Connection:
    """How an agent is reached by a configured engine=openai, whose further fields are left out."""
    names = Connection.__dataclass_fields__
    return connect(agent, {name: engine[name] for name in names if name in engine})


def connect(agent: Agent, shared: Mapping[str, Any]) -> Connection:
    """How an agent is reached: `shared`, overridden by its options. Raises BadInput, see `Connection`."""
    whose = f"agent {agent.name!r}"
    if agent.simulated:
        raise BadInput(f"{whose} has model 'simulated'; choose engine=simulator, or give it a model")
    agent.check_sampling()
    options = {**shared, **agent.options}
    if options.get("base_url"):
        check_urls(options["base_url"], whose)
    connection = call(Connection, options, f"ensemble.agents.{agent.name}.options")
    if connection.token_limit not in _TOKEN_LIMITS:
        raise choose(f"token_limit of {whose}:", connection.token_limit, _TOKEN_LIMITS)
    check_timeouts(connection.timeout, connection.connect_timeout, whose)
    if not connection.base_url:
        raise BadInput(
            f"{whose} has no endpoint; give engine.base_url=http://<host>:<port>/v1, or its own with "
            f"options.base_url"
        )
    _check_omitted(connection, agent)
    _check_extra(agent)
    return connection


def url_setting(agent: Agent) -> str:
    """The setting that the URL of an agent is taken from."""
    own = "base_url" in agent.options
    return f"ensemble.agents.{agent.name}.options.base_url" if own else "engine.base_url"


def _check_omitted(connection: Connection, agent: Agent) -> None:
    whose = f"agent {agent.name!r}"
    for name in connection.omit:
        if name not in _OMITTABLE:
            raise choose(f"field to omit of {whose}:", name, _OMITTABLE)
        if agent.sampling.get(name, 1) != 1:
            raise BadInput(
                f"{whose} omits {name}, but samples with {name}={agent.sampling[name]}; an endpoint that is "
                f"not told takes 1, so give ensemble.agents.{agent.name}.sampling.{name}=1"
            )


def _check_extra(agent: Agent) -> None:
    whose = f"agent {agent.name!r}"
    extra = agent.sampling.get("extra_body", {})
    if not isinstance(extra, Mapping):
        raise BadInput(f"{whose}: sampling.extra_body={extra!r} is no mapping of request fields")
    for name in extra:
        if name in _OWN_FIELDS:
            raise BadInput(
                f"{whose}: sampling.extra_body.{name} is a field that this engine fills itself; give "
                f"temperature, top_p and max_tokens in sampling, and no {name} here"
            )


def check_timeouts(timeout: float, connect_timeout: float, whose: str) -> None:
    """Raise BadInput for what are no seconds to wait."""
    if not 0 < timeout < math.inf or not 0 < connect_timeout < math.inf:
        raise BadInput(f"{whose}: timeout and connect_timeout are seconds above 0")


def check_urls(base_url: str | Sequence[str], whose: str) -> None:
    """Raise BadInput for what are no base URLs, or hold secrets that would end up in logs."""
    given = [base_url] if isinstance(base_url, str) else base_url
    if not isinstance(given, Sequence) or not all(isinstance(url, str) for url in given):
        raise BadInput(f"{whose}: base_url={base_url!r} is no URL, nor a list of them")
    for url in given:
        _check_url(url, whose)


def _check_url(text: str, whose: str) -> None:
    try:
        url = URL(text)
        host = url.host
        (host or "").encode("idna")  # as it will be when it is looked up
    except ValueError:
        url, host = URL(), None
    if url.user or url.password or url.query:
        raise BadInput(
            f"{whose}: the base_url with host {host} holds a user, password or query, which would end up "
            f"in logs; give the key through key_env=<environment variable>"
        )
    if url.scheme not in ("http", "https") or not host:
        raise BadInput(
            f"{whose}: base_url={without_secrets(text)!r} is no URL such as http://localhost:8000/v1"
        )
    if url.path.rstrip("/").endswith("/completions"):
        raise BadInput(f"{whose}: base_url={text!r} must end before /chat/completions")


def key_of(name: str | None, whose: str) -> str | None:
    """The key in an environment variable; no error shows it. Raises BadInput where it is not set."""
    if name is None:
        return None
    if not _VARIABLE.fullmatch(name) or without_secrets(name) != name:
        raise BadInput(
            f"{whose}: key_env is the name of an environment variable, such as OPENAI_API_KEY, and what was "
            f"given looks like a key itself; export OPENAI_API_KEY=<key>, and give key_env=OPENAI_API_KEY"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        replay = ", or choose engine=replay to rerun from the store" if whose.startswith("agent") else ""
        raise BadInput(
            f"{whose}: the environment variable {name} is empty or not set; export {name}=<key>{replay}"
        )
    if not key.isascii() or not key.isprintable():
        raise BadInput(f"{whose}: the environment variable {name} holds characters that no key has")
    return key
