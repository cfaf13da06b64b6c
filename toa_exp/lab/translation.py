"""English to German in miniature: notes of counts, dates, times and prices.

    forty-two apples, on the third of May, at half past four, for twelve euros fifty.
    zweiundvierzig Äpfel, am dritten Mai, um halb fünf, für zwölf Euro fünfzig.

Each part has one right translation. The number of parts is the dial.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from toa_exp.lab.domain import UNLABELLED, Listing, listed
from toa_exp.lab.numerals import english, english_ordinal, german, german_ordinal

_NOUNS = (
    "apples=Äpfel books=Bücher cars=Autos children=Kinder chairs=Stühle houses=Häuser keys=Schlüssel "
    "letters=Briefe tables=Tische trees=Bäume windows=Fenster birds=Vögel cups=Tassen dogs=Hunde "
    "flowers=Blumen glasses=Gläser guests=Gäste horses=Pferde lamps=Lampen nights=Nächte "
    "pears=Birnen plates=Teller rooms=Zimmer shirts=Hemden tickets=Karten"
)
_MONTHS = (
    "January=Januar February=Februar March=März April=April May=Mai June=Juni July=Juli "
    "August=August September=September October=Oktober November=November December=Dezember"
)
NOUNS = dict(pair.split("=") for pair in _NOUNS.split())
MONTHS = dict(pair.split("=") for pair in _MONTHS.split())
# English phrase: German phrase, and by how much the German hour is ahead of the English one.
CLOCK = {
    "half past": ("halb", 1),
    "quarter past": ("Viertel nach", 0),
    "quarter to": ("Viertel vor", 0),
    "ten past": ("zehn nach", 0),
    "ten to": ("zehn vor", 0),
    "twenty past": ("zwanzig nach", 0),
    "twenty to": ("zwanzig vor", 0),
    "five past": ("fünf nach", 0),
    "five to": ("fünf vor", 0),
}
_WORDS = {"count": list(NOUNS), "date": list(MONTHS), "time": list(CLOCK)}
SKILLS = ("count", "date", "time", "price")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of one skill: `word` is its noun, month or clock phrase, `first` and `second` its numbers."""

    skill: str
    word: str
    first: int
    second: int = 0

    def __str__(self) -> str:
        match self.skill:
            case "count":
                return f"{english(self.first)} {self.word}"
            case "date":
                return f"on the {english_ordinal(self.first)} of {self.word}"
            case "time":
                return f"at {self.word} {english(self.first)}"
        return f"for {english(self.first)} euros {english(self.second)}"

    @property
    def german(self) -> str:
        """The right translation."""
        match self.skill:
            case "count":
                return f"{german(self.first)} {NOUNS[self.word]}"
            case "date":
                return f"am {german_ordinal(self.first)} {MONTHS[self.word]}"
            case "time":
                phrase, ahead = CLOCK[self.word]
                return f"um {phrase} {german((self.first - 1 + ahead) % 12 + 1)}"
        return f"für {german(self.first)} Euro {german(self.second)}"

    @property
    def table(self) -> tuple[str, str]:
        """The skill, and its word (of a price the tens of the euros)."""
        return self.skill, self.word or str(self.first // 10)

    def answer(self, rng: Random) -> str:
        """The right translation."""
        return self.german

    def accepts(self, value: str) -> bool:
        """Only the right translation."""
        return value == self.german

    def slip(self, rng: Random) -> str:
        """The translation of a near phrase: another word, a number off by one or with its digits swapped."""
        while True:
            wrong = self._near(rng).german
            if wrong != self.german:
                return wrong

    def misconception(self, rng: Random) -> str:
        """With another word (of a price other tens of the euros) in its place."""
        words = _WORDS.get(self.skill)
        if words:
            wrong = rng.choice([word for word in words if word != self.word])
            return Phrase(self.skill, wrong, self.first).german
        # Below twenty a number is one word, without tens.
        tens = rng.choice([other for other in range(2, 10) if other != self.first // 10])
        return Phrase(self.skill, "", tens * 10 + self.first % 10, self.second).german

    def _near(self, rng: Random) -> Phrase:
        most = {"count": 99, "date": 31, "time": 12, "price": 99}[self.skill]
        words = _WORDS.get(self.skill)
        if words and rng.random() < 0.4:
            return Phrase(self.skill, rng.choice(words), self.first)
        second = self.skill == "price" and rng.random() < 0.5
        number = self.second if second else self.first
        changed = rng.choice((number - 1, number + 1, number + 10, number % 10 * 10 + number // 10))
        changed = changed if 1 <= changed <= most else number
        if self.skill == "price":
            return Phrase("price", "", *((self.first, changed) if second else (changed, self.second)))
        return Phrase(self.skill, self.word, changed)


_ENGLISH = {english(n): n for n in range(1, 100)}
_ORDINAL = {english_ordinal(n): n for n in range(1, 32)}
_DATE = re.compile(r"on the ([a-z-]+) of (\w+)")
_TIME = re.compile(r"at (\w+ (?:past|to)) (\w+)")
_PRICE = re.compile(r"for ([a-z-]+) euros ([a-z-]+)")
_COUNT = re.compile(r"([a-z-]+) (\w+)")


class Translation(Listing):
    """The domain of translation."""

    name = "translation"

    def draw(self, rng: Random, parts: int) -> str:
        """Phrases of any skill, each as likely."""
        return ", ".join(str(_random_phrase(rng)) for _ in range(parts)) + "."

    def parse(self, prompt: str) -> Sequence[Phrase]:
        """The phrases of a note."""
        return [_parse(text) for text in listed(prompt)]

    def right(self, prompt: str, text: str) -> list[bool]:
        """Phrase by phrase."""
        return [given == expected for given, expected in self._pairs(prompt, text)]

    def marks(self, prompt: str, text: str) -> list[float]:
        """The characters of the phrases; the comma or full stop after one tells whether it is complete."""
        marks: list[float] = []
        for given, expected in self._pairs(prompt, text):
            marks += [float(expected.startswith(given[: place + 1])) for place in range(len(given))]
            marks += [float(given == expected), UNLABELLED]
        return (marks + [UNLABELLED] * len(text))[: len(text)]

    def _pairs(self, prompt: str, text: str) -> list[tuple[str, str]]:
        expected = [phrase.german for phrase in self.parse(prompt)]
        given = listed(text)
        size = max(len(expected), len(given))
        return list(
            zip(given + [""] * (size - len(given)), expected + ["\n"] * (size - len(expected)), strict=True)
        )


def _parse(text: str) -> Phrase:
    if match := _DATE.fullmatch(text):
        return Phrase("date", match[2], _ORDINAL[match[1]])
    if match := _TIME.fullmatch(text):
        return Phrase("time", match[1], _ENGLISH[match[2]])
    if match := _PRICE.fullmatch(text):
        return Phrase("price", "", _ENGLISH[match[1]], _ENGLISH[match[2]])
    if match := _COUNT.fullmatch(text):
        return Phrase("count", match[2], _ENGLISH[match[1]])
    raise ValueError(f"phrase {text!r}: no count, date, time or price")


def _random_phrase(rng: Random) -> Phrase:
    skill = rng.choice(SKILLS)
    if skill == "price":
        return Phrase(skill, "", rng.randint(2, 99), rng.randint(2, 99))
    first = {"count": rng.randint(2, 99), "date": rng.randint(1, 31), "time": rng.randint(1, 12)}[skill]
    return Phrase(skill, rng.choice(_WORDS[skill]), first)
