"""Removes secrets from what leaves this machine, such as a config that is logged."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

REMOVED = "[removed]"

_SECRET_NAME = re.compile(
    r"(^|_)(api_?keys?|access_?keys?|private_?keys?|secret_?keys?|secrets?|token|passwd|passphrase|auth"
    r"|authorization|credentials?|cookie|bearer)$|password$"
)
_TOKENIZER_FIELD = re.compile(r"^(bos|eos|pad|unk|sep|cls|mask|stop|image|start|end)_token$")
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk)-(?=[\w-]*\d)[\w-]{20,}"  # OpenAI, Anthropic, OpenRouter, Langfuse
    r"|\b(?:hf|gsk|r8|xai|nvapi)[_-][A-Za-z0-9]{24,}|\bwandb_v1_\w{16,}"
    r"|\b(?:gh[opsur]|github_pat)_\w{20,}|\bglpat-[\w-]{16,}|\bxox[a-z]-[\w-]{10,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user and password of a URL
    r"|(?<=[?&])(?i:[\w-]*(?:key|token|secret|password|signature))=[^&\s]+"
    r"|\b(?i:bearer|basic) (?=\S*\d)[\w.~+/=-]{16,}",
    re.DOTALL,
)
_PASSWORD = re.compile(r"(\w+://[^:@/?#]*):(.*)(?=@)|(?<=[?&])password=([^&]*)&?")
_LEAST = 12  # characters; a shorter value of a secret variable may well be a word of the config


def without_secrets(value: Any) -> Any:
    """A copy of a nested config without its secrets, made of dicts, lists and scalars.

    Entries whose name says that they are secret (`api_key`, `hf_token`, `Authorization`, ...) are
    dropped; in every text what looks like a key, or equals a secret environment variable, becomes
    "[removed]". Counts of tokens and a tokenizer's fields stay, and so do 40-digit hexadecimal
    numbers, which are revisions far more often than keys.
    """
    return _clean(value, _secrets_of_environment())


def _clean(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _clean_text(str(name), secrets): _clean(entry, secrets)
            for name, entry in value.items()
            if not _is_secret(str(name))
        }
    if isinstance(value, str):
        return _clean_text(value, secrets)
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "__iter__"):
        return [_clean(entry, secrets) for entry in value]
    return _clean_text(str(value), secrets)


def _clean_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REMOVED)
    return _SECRET_TEXT.sub(REMOVED, text)


def _is_secret(name: str) -> bool:
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).replace("-", "_").lower()
    return bool(_SECRET_NAME.search(words)) and not _TOKENIZER_FIELD.match(words)


def _secrets_of_environment() -> list[str]:
    """Values of the secret variables, longest first, so that none is removed only in part."""
    values = {value for name, value in os.environ.items() if _is_secret(name) and len(value) >= _LEAST}
    return sorted(values, key=len, reverse=True)


def split_password(url: str) -> tuple[str, str | None]:
    """A text with a database's URL without its password, and the password, None where it has none."""
    found = [match[2] or match[3] for match in _PASSWORD.finditer(url)]
    return _PASSWORD.sub(r"\1", url).rstrip("?&"), unquote(found[0]) if found and found[0] else None
