"""Numbers from 1 to 99 in words, English and German."""

from __future__ import annotations

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_EINER = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
_ZEHNER = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
_ENGLISH, _ENGLISH_TENS = _UNITS.split(), _TENS.split()
_GERMAN, _GERMAN_TENS = _EINER.split(), _ZEHNER.split()
_IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth",
              "nine": "ninth", "twelve": "twelfth"}  # fmt: skip
_GERMAN_IRREGULAR = {1: "ersten", 3: "dritten", 7: "siebten", 8: "achten"}


def english(number: int) -> str:
    """forty-two."""
    if number < 20:
        return _ENGLISH[number]
    tens, ones = _ENGLISH_TENS[number // 10 - 2], number % 10
    return f"{tens}-{_ENGLISH[ones]}" if ones else tens


def english_ordinal(number: int) -> str:
    """forty-second."""
    start, dash, last = english(number).rpartition("-")
    if last.endswith("y"):
        return f"{start}{dash}{last[:-1]}ieth"
    return f"{start}{dash}{_IRREGULAR.get(last, last + 'th')}"


def german(number: int) -> str:
    """zweiundvierzig; one is "eins"."""
    if number < 20:
        return "eins" if number == 1 else _GERMAN[number]
    tens, ones = _GERMAN_TENS[number // 10 - 2], number % 10
    return f"{_GERMAN[ones]}und{tens}" if ones else tens


def german_ordinal(number: int) -> str:
    """The ordinal as it stands after "am": zweiundvierzigsten."""
    return _GERMAN_IRREGULAR.get(number, german(number) + ("ten" if number < 20 else "sten"))
