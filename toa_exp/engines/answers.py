"""What a status and the words of a server mean, whoever was asked and for whatever.

Servers differ in how they word an error, so that one is told by its code where there is one and else
by the words of vLLM, SGLang, llama.cpp, Ollama, OpenAI, Azure and OpenRouter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from toa_exp.engines.endpoints import BadGateway, Refused
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.redact import REMOVED, without_secrets

_SHOWN = 300  # characters of a server's message
_OVERLOADED = {429, 503, 529}
_GATEWAY = {502, 504, *range(520, 525)}  # these five are Cloudflare's
_MAY_PASS = {408, 409, 425}
_WORDS = ["error", "errors", "result", "reason", "code", "type", "loc", "message", "detail", "msg",
          "innererror", "metadata", "raw"]  # fmt: skip
_NO_CREDIT = re.compile(r"insufficient_quota|insufficient[ _](balance|credits?)", re.IGNORECASE)
_MASKED = re.compile(r"\S*\*{3,}\S*")  # what servers leave of a key that they quote


@dataclass(frozen=True, slots=True)
class Mends:
    """What to do about the errors of an endpoint that depend on what it is asked for.

    `url` is the setting that holds the URL, `key` the one that names the environment variable of the
    key, `unknown` says what a status 404 may mean, `compare` what to do about that, and `refused` what
    to change in a request that is not taken.
    """

    url: str
    key: str
    unknown: str
    compare: str
    refused: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom an answer comes from, for errors; `key` is the secret to keep out of them."""

    whose: str
    url: str
    key_env: str | None
    key: str | None
    mends: Mends

    def __str__(self) -> str:
        return f"{self.whose} at {self.url}"

    def __repr__(self) -> str:
        return f"Asked({self})"


def parsed(content: bytes | str) -> Any:
    """The JSON value in a body, None where it holds none."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def complain(status: int, headers: Mapping[str, str], message: str, asked: Asked) -> NoReturn:
    """Raise what a status other than 200 stands for.

    That is Refused for an endpoint with too much to do, BadGateway for one that another server asks in
    vain, Unavailable for a fault, BadInput for a wrong key, model or URL, Permanent for a request that
    is not taken. `message` is the server's, see `message_of`.
    """
    said = f"({status}: {message})"
    if status == 402 or _NO_CREDIT.search(message):
        raise BadInput(f"{asked} has no credit left {said}. Add some there and run again to go on")
    wait = retry_after(headers.get("Retry-After"))
    asks = "" if wait is None else f" and asks to wait {wait:.0f} s"
    if status in _OVERLOADED:
        raise Refused(f"{asked} has too much to do {said}{asks}", wait)
    if status in _GATEWAY:
        raise BadGateway(f"{asked} gives its gateway no answer {said}{asks}", wait)
    if status >= 500 or status in _MAY_PASS:
        raise Unavailable(f"{asked} failed {said}")
    if status in (401, 403):
        mend = (
            f"check the key in the environment variable {asked.key_env}"
            if asked.key_env
            else f"name the environment variable that holds its key: {asked.mends.key}=<name>"
        )
        raise BadInput(f"{asked} refuses access {said}; {mend}")
    if status == 404:
        raise BadInput(f"{asked} {asked.mends.unknown} {said}; {asked.mends.compare}")
    if 300 <= status < 400:
        raise BadInput(
            f"{asked} moved to {headers.get('Location')!r} ({status}); set {asked.mends.url} accordingly"
        )
    raise Permanent(f"{asked} does not take the request {said}; {asked.mends.refused}")


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or a date), or None."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.astimezone(UTC) - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < 1e9 else None  # nan is no number of seconds either


def message_of(body: Any, content: bytes, asked: Asked) -> str:
    """The server's own words, shortened, without the key."""
    error = body.get("error") or body if isinstance(body, dict) else body
    code, text = None, error
    if isinstance(error, dict):
        code, text = error.get("code"), error.get("message") or error.get("detail") or json.dumps(error)
    if not isinstance(text, str):
        text = words(body) or decoded(content)
    return shorten(f"{code}: {text}" if isinstance(code, str) else text, asked)


def words(body: Any) -> str:
    """What a body says in so many words, without what it quotes of the request."""
    if isinstance(body, str):  # that of a provider may hold the body it got; vLLM prints what was not valid
        inner = parsed(body)
        return words(inner) if isinstance(inner, dict | list) else body.partition("'input': ")[0]
    if isinstance(body, dict):
        body = [body[name] for name in _WORDS if name in body]
    return " ".join(map(words, body)) if isinstance(body, list) else ""


def decoded(content: bytes) -> str:
    """A body as text, whatever it holds."""
    return content.decode("utf-8", "replace")


def shorten(text: str, asked: Asked) -> str:
    """Text from outside as an error may show it: one short line without keys."""
    if asked.key:
        text = text.replace(asked.key, REMOVED)
    text = _MASKED.sub(REMOVED, str(without_secrets(" ".join(text.split()))))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
