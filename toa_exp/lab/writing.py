"""Constrained writing in miniature: a list of wishes, each with several words that meet it.

    an animal with b, a rhyme of light, the opposite of hot, a word of 5 letters.
    bear, night, cold, apple.

Unlike in the other tasks there is no single right answer. The number of wishes is the dial.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from toa_exp.lab.domain import UNLABELLED, Listing, listed

_KINDS = {
    "animal": "ant ape bat bear bee bird bull cat cow crab deer dog duck eagle fish fly fox frog goat goose "
    "hare hawk hen horse lamb lion mole moose mouse mule owl pig rabbit rat seal sheep snail snake swan "
    "tiger toad wasp wolf worm zebra",
    "food": "apple bacon banana bean bread butter cake carrot cheese cherry corn cream egg fig flour garlic "
    "grape ham honey jam leek lemon lime mango meat melon milk nut olive onion orange pasta peach pear "
    "pepper pie plum potato rice salad salt soup sugar tea tomato",
    "thing": "bag ball basket bed bell boat book bottle bowl box brush bucket candle chair clock coat cup "
    "desk door drum fork glove hammer hat jar key knife ladder lamp lock map mirror needle oven paper pen "
    "pillow plate pot ring rope saw scarf shoe spoon stool table towel watch wheel",
}
_RHYMES = (
    "light night right bright fight kite white",
    "cat hat bat rat flat mat",
    "day play stay grey clay way",
    "ring sing king spring wing thing",
    "rain train plane chain lane brain",
    "bell well shell smell tell spell",
    "cold gold old fold hold bold",
    "tree bee sea key knee free",
    "book hook look cook brook took",
    "song long strong wrong gong",
    "ball wall fall call small tall",
    "boat coat goat note float vote",
)
_OPPOSITES = (
    "hot=cold big=small old=new day=night high=low fast=slow light=dark good=bad rich=poor wet=dry hard=soft "
    "early=late full=empty happy=sad long=short near=far open=shut strong=weak clean=dirty loud=quiet "
    "thick=thin true=false win=lose give=take push=pull buy=sell first=last left=right up=down sweet=sour"
)
KINDS = {kind: words.split() for kind, words in _KINDS.items()}
RHYMES = [family.split() for family in _RHYMES]
OPPOSITES = dict(pair.split("=") for pair in _OPPOSITES.split())
WORDS = sorted(
    {w for words in KINDS.values() for w in words} | {w for f in RHYMES for w in f} | set(OPPOSITES.values())
)
LENGTHS = tuple(range(3, 7))
SKILLS = ("kind", "rhyme", "opposite", "length")
_ARTICLE = {"animal": "an animal", "food": "a food", "thing": "a thing"}
_WISH = re.compile(
    r"an? (animal|food|thing) with ([a-z])|a rhyme of ([a-z]+)|the opposite of ([a-z]+)"
    r"|a word of (\d) letters"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A wish of one skill about a `subject`: a word, a letter (of a `kind` of things) or a number."""

    skill: str
    subject: str
    kind: str = ""

    def __str__(self) -> str:
        match self.skill:
            case "kind":
                return f"{_ARTICLE[self.kind]} with {self.subject}"
            case "rhyme":
                return f"a rhyme of {self.subject}"
            case "opposite":
                return f"the opposite of {self.subject}"
        return f"a word of {self.subject} letters"

    @property
    def table(self) -> tuple[str, str]:
        """The skill and its subject."""
        return self.skill, self.kind + self.subject

    def answer(self, rng: Random) -> str:
        """Any word that meets the wish."""
        return rng.choice(self._fitting())

    def accepts(self, value: str) -> bool:
        """Whether a word of the lab's word list meets the wish."""
        return value in self._fitting()

    def slip(self, rng: Random) -> str:
        """A word that does not: mostly of the right sort, for another subject."""
        while True:
            other = _random_wish(rng, self.skill) if rng.random() < 0.8 else _random_wish(rng)
            wrong = other.answer(rng)
            if not self.accepts(wrong):
                return wrong

    def misconception(self, rng: Random) -> str:
        """The word that `rng` chooses."""
        return self.slip(rng)

    def _fitting(self) -> list[str]:
        match self.skill:
            case "kind":
                return [word for word in KINDS[self.kind] if word[0] == self.subject]
            case "rhyme":
                family = next((f for f in RHYMES if self.subject in f), [])
                return [word for word in family if word != self.subject]
            case "opposite":
                return [OPPOSITES[self.subject]]
        return [word for word in WORDS if len(word) == int(self.subject)]


class Instructions(Listing):
    """The domain of constrained writing."""

    name = "instructions"

    def draw(self, rng: Random, parts: int) -> str:
        """Wishes of any skill, each as likely."""
        return ", ".join(str(_random_wish(rng)) for _ in range(parts)) + "."

    def parse(self, prompt: str) -> Sequence[Wish]:
        """The wishes of a prompt."""
        return [_parse(text) for text in listed(prompt)]

    def right(self, prompt: str, text: str) -> list[bool]:
        """Wish by wish whether the word in its place meets it."""
        wishes, words = self.parse(prompt), listed(text)
        size = max(len(wishes), len(words))
        return [
            number < len(wishes) and number < len(words) and wishes[number].accepts(words[number])
            for number in range(size)
        ]

    def marks(self, prompt: str, text: str) -> list[float]:
        """The last character of each word and the comma or full stop after it."""
        marks: list[float] = []
        for word, right in zip(listed(text), self.right(prompt, text), strict=False):
            marks += [UNLABELLED] * (len(word) - 1) + [float(right)] * (1 if word else 0)
            marks += [float(right), UNLABELLED]
        return (marks + [UNLABELLED] * len(text))[: len(text)]


def _parse(text: str) -> Wish:
    match = _WISH.fullmatch(text)
    if match is None:
        raise ValueError(f"wish {text!r}: expected one such as 'a rhyme of light'")
    if match[1]:
        return Wish("kind", match[2], match[1])
    for group, skill in ((3, "rhyme"), (4, "opposite"), (5, "length")):
        if match[group]:
            return Wish(skill, match[group])
    raise AssertionError(text)


def _random_wish(rng: Random, skill: str | None = None) -> Wish:
    skill = skill or rng.choice(SKILLS)
    match skill:
        case "kind":
            kind = rng.choice(list(KINDS))
            return Wish(skill, rng.choice(KINDS[kind])[0], kind)
        case "rhyme":
            return Wish(skill, rng.choice(rng.choice(RHYMES)))
        case "opposite":
            return Wish(skill, rng.choice(list(OPPOSITES)))
    return Wish("length", str(rng.choice(LENGTHS)))
