"""Final answers in running text, and their comparison as strings and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation

_LINE = re.compile(
    r"^[\s*#>_-]*(?:the\s+)?(?:final\s+)?answer\b[*_\s]*(?:is\b[*_\s]*[:=]?|[:=])[*_\s]*(\S.*?)[\s*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"-?[\d,]*\.?\d+")


def final_answer(text: str) -> str | None:
    r"""The content of the last \boxed{...}, else of the last line "Answer: ...", else None."""
    boxed = _boxed(text)
    if boxed is not None:
        return boxed.strip()
    lines = _LINE.findall(text)
    return lines[-1].strip() if lines else None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def normalise(answer: str) -> str:
    """An answer without differences of case, spacing, closing stop, dollar signs and number format.

    >>> normalise(" $1,250.00. ")
    '1250'
    """
    plain = _SPACE.sub(" ", answer).strip().strip("$").rstrip(".").strip().casefold()
    if _NUMBER.fullmatch(plain):
        try:
            value = Decimal(plain.replace(",", ""))
        except InvalidOperation:
            return plain
        return format(value.normalize(), "f") if value else "0"
    return plain


def _stated(text: str) -> str:
    stated = final_answer(text)
    return normalise(text if stated is None else stated)


class ExactMatch:
    """Judge: the final answer, or the whole text where none is marked, equals the reference."""

    def fingerprint(self) -> Mapping[str, str]:
        """Its name."""
        return {"judge": "exact match"}

    async def correct(self, reference: str, text: str) -> bool | None:
        """Whether both are equal after `normalise`."""
        return _stated(text) == normalise(reference)

    async def equal(self, reference: str, answer: str) -> bool | None:
        """Whether both are equal after `normalise`."""
        return normalise(answer) == normalise(reference)

    async def ballots(self, texts: Sequence[str]) -> list[str | None]:
        """What `correct` compares of each text; None of a text without any."""
        return [_stated(text) or None for text in texts]

    async def close(self) -> None:
        """Nothing is held."""
