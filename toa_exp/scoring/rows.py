"""Checks that all forms of rows share: identities, texts, numbers, languages."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toa_exp.errors import BadInput

Row = Mapping[str, Any]
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "FULLWIDTH": "CJK"}
_LETTERS = 400  # of a text, to tell its script
_MIXED = 0.1  # a share of rows in another script than the others: a name or a link makes less


def identifiers(rows: Sequence[Row], field: str = "id") -> list[str]:
    """The ids of rows; rows without any are numbered from 0.

    Raises BadInput where only some rows have one, where one is no string or number, or twice.
    """
    have = [row.get(field) not in (None, "") for row in rows]
    if not any(have):
        return [str(number) for number in range(len(rows))]
    if not all(have):
        raise BadInput(f"row {have.index(False) + 1} has no {field!r}, and others have; give it to all rows")
    found: list[str] = []
    for number, row in enumerate(rows, start=1):
        value = row[field]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadInput(f"row {number}: {field}={value!r} is no id; give a string or an integer")
        found.append(str(value))
    unique(found, field)
    return found


def unique(found: Iterable[str], field: str) -> None:
    """Raises BadInput where a value occurs twice."""
    twice = [value for value, count in Counter(found).items() if count > 1]
    if twice:
        raise BadInput(f"{field} {_some(twice)} occurs more than once; every output is scored once")


def same(expected: Sequence[str], found: Iterable[str], what: str, mend: str) -> None:
    """Raises BadInput where `found` are not the expected ids."""
    given = set(found)
    missing = [value for value in expected if value not in given]
    unknown = sorted(given - set(expected))
    if unknown:
        raise BadInput(f"{what}: id {_some(unknown)} is none of the task's {len(expected)}. {mend}")
    if missing:
        raise BadInput(f"{what}: {len(missing)} of {len(expected)} ids are missing: {_some(missing)}. {mend}")


def text(row: Row, field: str, where: str) -> str | None:
    """The text of a field, None where there is none; raises BadInput for what is no text."""
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{where}: {field!r} is {type(value).__name__} {value!r:.60}; give a text or null")
    return value


def integer(row: Row, field: str, where: str) -> int:
    """The integer in a field; raises BadInput."""
    value = number(row, field, where)
    if value is None or value != int(value):
        raise BadInput(f"{where}: {field}={row.get(field)!r} is no integer")
    return int(value)


def number(row: Row, field: str, where: str) -> float | None:
    """The number in a field, None where it is empty, null or NaN; raises BadInput for anything else."""
    value = row.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{where}: {field}={value!r:.60} is no number")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise BadInput(f"{where}: {field}={value!r:.60} is no number") from None
    if math.isinf(found):
        raise BadInput(f"{where}: {field}={value!r} is not finite")
    return None if math.isnan(found) else found


def script(given: str) -> str | None:
    """The script of most letters of a text, such as LATIN or CJK (with kana); None without letters."""
    counts: Counter[str] = Counter()
    for letter in given[:_LETTERS]:
        if letter.isalpha():
            name = unicodedata.name(letter, "").split(" ")[0]
            counts[_TOGETHER.get(name, name)] += 1
    return counts.most_common(1)[0][0] if counts else None


def one_script(texts: Iterable[str], what: str) -> str | None:
    """The script of most texts; raises BadInput where many are in another one."""
    counts = Counter(found for found in map(script, texts) if found is not None)
    if not counts:
        return None
    (first, most), *others = counts.most_common()
    if others and others[0][1] >= _MIXED * (most + others[0][1]):
        raise BadInput(
            f"the {what} are of several languages: {most} are in {first.title()} script and "
            f"{others[0][1]} in {others[0][0].title()}. Score each language pair on its own"
        )
    return first


def _some(values: Sequence[str]) -> str:
    shown = ", ".join(repr(value) for value in values[:5])
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")
