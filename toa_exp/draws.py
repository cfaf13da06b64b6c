"""The identity of a sample and of a score: what the store is keyed by."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_exp.core import Problem, Request, Usage

Message = dict[str, str]
"""A chat message: `role` and `content`."""

_BYTES = 16
_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


def digest(*parts: bytes) -> bytes:
    """A 16-byte digest of the parts, each with its length, so that no two lists read alike."""
    lengths = b"%d," * len(parts) % tuple(map(len, parts))
    return hashlib.blake2b(b"".join((lengths, b":", *parts)), digest_size=_BYTES).digest()


def encode(text: str) -> bytes:
    """UTF-8 that also takes the lone surrogates that a model may write."""
    return text.encode("utf-8", "surrogatepass")


def decode(text: str | bytes) -> str:
    """The inverse of `encode`; what is a text already stays."""
    return text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")


def canonical(value: Mapping[str, Any] | Sequence[Message]) -> bytes:
    """JSON with sorted keys, so that equal values are equal bytes."""
    return encode(_JSON.encode(value))


@dataclass(slots=True)
class Draw:
    """One sample to be drawn, as engines are asked for it.

    `key` identifies it; method and budget are not in it, so that all of them share draws. `agent`
    is the digest of the agent's fingerprint, `prompt` that of `messages`, `occurrence` how often
    the trajectory asked exactly this before, and `seed` the seed of the run.
    """

    key: bytes
    problem: Problem
    request: Request
    messages: list[Message]
    agent: bytes
    prompt: bytes
    occurrence: int
    seed: int

    @property
    def sampling_seed(self) -> int:
        """A 63-bit seed of this draw alone, for engines that take one."""
        return int.from_bytes(self.key[:8], "little") >> 1


def draw_key(problem: str, agent: bytes, prompt: bytes, occurrence: int, seed: int) -> bytes:
    """The key of a draw, from the digests of the agent's fingerprint and of the messages."""
    return digest(encode(problem), agent, prompt, b"%d/%d" % (occurrence, seed))


@dataclass(slots=True)
class ScoreKey:
    """What identifies a score: the digests of the reward's fingerprint, the problem and the text.

    The problem counts with its prompt and reference, since both may decide a score, and ids such
    as "0" occur in many tasks.
    """

    digest: bytes
    problem: str
    content: bytes
    reward: bytes
    text: bytes


def score_key(reward: bytes, problem: Problem, text: str) -> ScoreKey:
    """The key of a score; `reward` is the digest of the reward's fingerprint."""
    content = _content(problem.id, problem.prompt, str(problem.reference))
    text_digest = digest(encode(text))
    key = digest(content, reward, text_digest)
    return ScoreKey(key, problem.id, content, reward, text_digest)


@functools.lru_cache(maxsize=256)  # a problem is open for all of its samples
def _content(problem: str, prompt: str, reference: str) -> bytes:
    return digest(encode(problem), encode(prompt), encode(reference))


@dataclass(slots=True)
class Sample:
    """What came of a draw; `seconds` is the engine's time, shared out over a batch.

    `failure` names why there is no usable text, as in `toa_exp.core.Reply`.
    """

    text: str
    usage: Usage
    seconds: float
    failure: str | None = None


@dataclass(slots=True)
class Score:
    """A reward and what it took: tokens read by the reward model, and seconds."""

    reward: float
    tokens: int
    seconds: float
