"""Reads what an OpenAI-compatible endpoint answers to a chat completion."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from toa_exp.core import Usage
from toa_exp.draws import Sample
from toa_exp.engines.answers import Asked, complain, decoded, message_of, parsed, shorten, words
from toa_exp.errors import BadInput, Permanent, Unavailable

_WINDOW = re.compile(
    r"context[ _](length|window|size)[ _]?exceeded|exceed_context_size|maximum (context|model) length"
    r"|(exceeds?|longer than)\b.{0,40}\bcontext (length|window|size)|prompt is too long|input is too long"
    r"|max_tokens must be at least 1, got (0|-)|exceeds the maximum number of tokens"
    r"|context length is only \d|cannot be greater than max_model_len",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content_filter|content_policy|ResponsibleAIPolicyViolation|data_inspection_failed"
    r"|content management policy|requires moderation",
    re.IGNORECASE,
)
_WINDOW_SIZE = re.compile(
    r"(?:maximum context length is|context length is only) (\d+) tokens|greater than max_model_len=(\d+)"
)
# SGLang, which refuses a request that would fill its window to the last token.
_WINDOW_LESS_ONE = re.compile(r"exceeds the model's maximum context length of (\d+) tokens")
_PROMPT_SIZE = re.compile(
    r"(\d+) (?:input tokens|in the messages|in your prompt|of text input|tokens from the input messages)"
)
# vLLM counts a prompt only up to where it cannot fit any more, or asks for max_tokens before it counts.
_NOT_COUNTED = re.compile(r"at least \d+ input tokens|greater than max_model_len=")
_NO_TEMPLATE = re.compile(
    r"(does not have|no|missing|without|provide a|set a) chat[ _]template|chat template is no longer allowed"
    r"|chat_template is not set",
    re.IGNORECASE,
)


def read(status: int, headers: Mapping[str, str], content: bytes, asked: Asked, seconds: float) -> Sample:
    """The sample that a response holds; `seconds` are its own.

    A prompt over the context window, a content filter and an answer whose reasoning was cut are a Sample
    with `failure`: the request decides that, and the server's settings do not. A prompt that is refused as
    such was neither read nor answered, so it took no tokens. An empty text that was not cut is an answer: a
    model may say nothing. Raises Refused for an endpoint with too much to do or none there, Unavailable for
    a fault or a malformed answer, Permanent for a request that it does not take and for an answer that does
    not state its tokens, is all reasoning or calls tools, BadInput for a wrong key, model or URL.
    """
    body = parsed(content)
    error = body.get("error") if isinstance(body, dict) else None
    if status == 200 and not error:
        return _completion(body, content, asked, seconds)
    if status == 200:  # OpenRouter puts the status of its provider into the body
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 500
    message = message_of(body, content, asked)
    failure = _failure(status, _said(content))
    if failure is not None:
        return Sample("", Usage(0, 0), seconds, failure)
    if _NO_TEMPLATE.search(message):
        raise BadInput(
            f"{asked} has no chat template for its model ({status}: {message}). Serve a model trained for "
            f"chat, or give the server a template: --chat-template <file> with vLLM"
        )
    complain(status, headers, message, asked)


def overflow(status: int, content: bytes) -> tuple[int, int | None] | None:
    """Where more tokens were asked for than there is room for: those of the room and of the prompt.

    The room is that of both together, the window as a rule. Those of the prompt are None where the server
    did not count them. Returns None where the response is none of these, or does not tell.
    """
    text = _said(content)
    window, less_one = _WINDOW_SIZE.search(text), _WINDOW_LESS_ONE.search(text)
    prompt = _PROMPT_SIZE.search(text)
    if _failure(status, text) != "context_window":
        return None
    if window is not None:
        size = int(window[1] or window[2])
    elif less_one is not None:
        size = int(less_one[1]) - 1
    else:
        return None
    if _NOT_COUNTED.search(text):
        return size, None
    return None if prompt is None else (size, int(prompt[1]))


def prompt_tokens(status: int, content: bytes) -> int | None:
    """The tokens of the prompt that an answer states; None where there is no answer."""
    body = parsed(content)
    usage = body.get("usage") if status == 200 and isinstance(body, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int else None


def _completion(body: Any, content: bytes, asked: Asked, seconds: float) -> Sample:
    """The sample in a body of status 200."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        reason = choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        calls = message.get("tool_calls") or message.get("function_call")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise Unavailable(
            f"{asked} answered with no chat completion: {shorten(decoded(content), asked)!r}"
        ) from None
    if reason == "error":
        raise Unavailable(f"{asked} broke off its answer: {shorten(json.dumps(choice), asked)}")
    usage = _usage(body.get("usage"), text or "", asked)
    if reason == "content_filter":
        return Sample("", usage, seconds, "content_filter")
    if refusal and not text:
        return Sample("", usage, seconds, "refusal")
    if not text and reason == "length" and (reasoning or _hidden(body) or text is None):
        return Sample("", usage, seconds, "reasoning_cut")
    if not text and calls:
        raise Permanent(
            f"{asked} calls tools instead of answering; leave them out of sampling.extra_body and of the "
            f"server's settings"
        )
    if text is None and reasoning:
        raise Permanent(
            f"{asked} takes all of its answer for reasoning; see that the server's reasoning parser is the "
            f"model's"
        )
    if not isinstance(text, str) or (not text and not usage.completion_tokens):
        raise Unavailable(f"{asked} answered without content (finish_reason {reason!r})")
    return Sample(text, usage, seconds)


def _hidden(body: Any) -> bool:
    """Whether there was reasoning that is counted and not shown, as with OpenAI."""
    details = body["usage"].get("completion_tokens_details")
    return isinstance(details, dict) and bool(details.get("reasoning_tokens"))


def _usage(usage: Any, text: str, asked: Asked) -> Usage:
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or prompt < 1 or completion < bool(text):
        raise Permanent(
            f"{asked} does not say how many tokens its answer took (usage: {json.dumps(usage)[:100]}), so "
            f"that its cost is unknown; use a server that states prompt_tokens and completion_tokens"
        )
    return Usage(prompt, completion)


def _said(content: bytes) -> str:
    """What an error response says."""
    return words(parsed(content)) or decoded(content)


def _failure(status: int, error: str) -> str | None:
    """The failure that an error response stands for, where it is about this prompt alone."""
    if status in {400, 413, 422} and _WINDOW.search(error):
        return "context_window"
    return "content_filter" if status in {400, 403, 422} and _FILTER.search(error) else None
