"""Reads what an OpenAI-compatible endpoint answers to a chat completion.

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

from toa_exp.core import Usage
from toa_exp.draws import Sample
from toa_exp.engines.endpoints import Refused
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.redact import REMOVED, without_secrets

_SHOWN = 300  # characters of a server's message
_OVERLOADED = {429, 503, 529}
_MAY_PASS = {408, 409, 425}
_WINDOW = re.compile(
    r"context[ _](length|window|size)[ _]?exceeded|exceed_context_size|maximum (context|model) length"
    r"|(exceeds?|longer than)\b.{0,40}\bcontext (length|window|size)|prompt is too long|input is too long"
    r"|max_tokens must be at least 1, got -|exceeds the maximum number of tokens",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content_filter|content_policy|ResponsibleAIPolicyViolation|data_inspection_failed"
    r"|content management policy|requires moderation",
    re.IGNORECASE,
)
_WINDOW_SIZE = re.compile(r"maximum context length is (\d+) tokens")
_PROMPT_SIZE = re.compile(r"(\d+) (?:input tokens|in the messages|in your prompt|of text input)")
_NO_CREDIT = re.compile(r"insufficient_quota|insufficient[ _](balance|credits?)", re.IGNORECASE)
_MASKED = re.compile(r"\S*\*{3,}\S*")  # what servers leave of a key that they quote


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom an answer comes from, for errors; `key` is the secret to keep out of them."""

    agent: str
    model: str
    url: str
    key_env: str | None
    key: str | None

    def __str__(self) -> str:
        return f"agent {self.agent!r} at {self.url}"

    def __repr__(self) -> str:
        return f"Asked({self})"


def read(status: int, headers: Mapping[str, str], content: bytes, asked: Asked, seconds: float) -> Sample:
    """The sample that a response holds; `seconds` are its own.

    A prompt over the context window, and a content filter, are a Sample with `failure`. A prompt
    that is refused as such was neither read nor answered, so it took no tokens. Raises Refused for
    an endpoint with too much to do, Unavailable for a fault or a malformed answer, Permanent for a
    request that it does not take and for an answer that does not state its tokens, BadInput for a
    wrong key, model or URL.
    """
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    if status == 200 and not error:
        return _completion(body, content, asked, seconds)
    if status == 200:  # OpenRouter puts the status of its provider into the body
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 502
    message = _message(body, content, asked)
    failure = _failure(status, _decoded(content))
    if failure is not None:
        return Sample("", Usage(0, 0), seconds, failure)
    _complain(status, headers, message, asked)


def room_left(status: int, content: bytes) -> int | None:
    """Tokens that an answer may still have, where a prompt was refused for asking for more of them."""
    text = _decoded(content)
    window, prompt = _WINDOW_SIZE.search(text), _PROMPT_SIZE.search(text)
    if _failure(status, text) != "context_window" or window is None or prompt is None:
        return None
    room = int(window[1]) - int(prompt[1])
    return room if room > 0 else None


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


def _completion(body: Any, content: bytes, asked: Asked, seconds: float) -> Sample:
    """The sample in a body of status 200."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        reason = choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise Unavailable(
            f"{asked} answered with no chat completion: {shorten(_decoded(content), asked)!r}"
        ) from None
    if reason == "error":
        raise Unavailable(f"{asked} broke off its answer: {shorten(json.dumps(choice), asked)}")
    usage = _usage(body.get("usage"), text or "", asked)
    if reason == "content_filter":
        return Sample("", usage, seconds, "content_filter")
    if refusal and not text:
        return Sample("", usage, seconds, "refusal")
    if not text and reasoning and reason == "length":
        return Sample("", usage, seconds, "reasoning_cut")
    if not isinstance(text, str) or (not text and not usage.completion_tokens):
        raise Unavailable(f"{asked} answered without content (finish_reason {reason!r})")
    return Sample(text, usage, seconds)


def _usage(usage: Any, text: str, asked: Asked) -> Usage:
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or prompt < 1 or completion < bool(text):
        raise Permanent(
            f"{asked} does not say how many tokens its answer took (usage: {json.dumps(usage)[:100]}), so "
            f"that its cost is unknown; use a server that states prompt_tokens and completion_tokens"
        )
    return Usage(prompt, completion)


def _failure(status: int, error: str) -> str | None:
    """The failure that an error response stands for, where it is about this prompt alone."""
    if status in {400, 413, 422} and _WINDOW.search(error):
        return "context_window"
    return "content_filter" if status in {400, 403, 422} and _FILTER.search(error) else None


def _complain(status: int, headers: Mapping[str, str], message: str, asked: Asked) -> NoReturn:
    """Raise the error that a status stands for."""
    said = f"({status}: {message})"
    if status == 402 or _NO_CREDIT.search(message):
        raise BadInput(f"{asked} has no credit left {said}. Add some there and run again to go on")
    if status in _OVERLOADED:
        wait = retry_after(headers.get("Retry-After"))
        asks = "" if wait is None else f" and asks to wait {wait:.0f} s"
        raise Refused(f"{asked} has too much to do {said}{asks}", wait)
    if status >= 500 or status in _MAY_PASS:
        raise Unavailable(f"{asked} failed {said}")
    if status in (401, 403):
        mend = (
            f"check the key in the environment variable {asked.key_env}"
            if asked.key_env
            else "name the environment variable that holds its key: engine.key_env=<name>"
        )
        raise BadInput(f"{asked} refuses access {said}; {mend}")
    if status == 404:
        raise BadInput(
            f"{asked} does not know model {asked.model!r} or the path {said}; compare with "
            f"{asked.url}/models, and base_url with the server's own, which mostly ends in /v1"
        )
    if 300 <= status < 400:
        raise BadInput(f"{asked} moved to {headers.get('Location')!r} ({status}); set base_url accordingly")
    raise Permanent(
        f"{asked} does not take the request {said}; mend ensemble.agents.{asked.agent}.sampling, or leave "
        f"out what the endpoint does not know with options.omit"
    )


def _message(body: Any, content: bytes, asked: Asked) -> str:
    """The server's own words, shortened, without the key."""
    error = body.get("error") or body if isinstance(body, dict) else body
    code, text = None, error
    if isinstance(error, dict):
        code, text = error.get("code"), error.get("message") or error.get("detail") or json.dumps(error)
    if not isinstance(text, str):
        text = _decoded(content)
    return shorten(f"{code}: {text}" if isinstance(code, str) else text, asked)


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def shorten(text: str, asked: Asked) -> str:
    """Text from outside as an error may show it: one short line without keys."""
    if asked.key:
        text = text.replace(asked.key, REMOVED)
    text = _MASKED.sub(REMOVED, str(without_secrets(" ".join(text.split()))))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
