"""Arithmetic in miniature: terms of four operations, summed up line by line.

A problem is a list of terms such as `23*7,58/6,83-6`. Its solution has one line a term, with the
value of the term and the running total; the answer is the last total:

    23*7=161 161
    58/6=9 170
    83-6=77 247

A term's value enters the answer by addition only, so a wrong value does not vanish on the way; since two
may cancel, all lines are graded. The number of terms is the dial: the more there are, the more rarely a
fresh answer is right throughout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from toa_exp.lab.domain import UNLABELLED, Part

OPERATIONS = "+-*/"
_TERM = re.compile(r"(\d{1,3})([+\-*/])(\d{1,3})")
_LINE = re.compile(r"(\d{1,3}[+\-*/]\d{1,3})=(\d{1,4}) (\d{1,5})")


@dataclass(frozen=True, slots=True)
class Term:
    """Two numbers and the operation between them."""

    left: int
    operation: str
    number: int

    def __str__(self) -> str:
        return f"{self.left}{self.operation}{self.number}"

    @property
    def value(self) -> int:
        """The right value: `/` rounds down."""
        match self.operation:
            case "*":
                return self.left * self.number
            case "-":
                return self.left - self.number
            case "/":
                return self.left // self.number
            case "+":
                return self.left + self.number
        raise ValueError(f"operation {self.operation!r}: one of {OPERATIONS}")

    @property
    def table(self) -> tuple[str, str]:
        """The operation and the number on the right: "the seven times table"."""
        return self.operation, str(self.number)

    def answer(self, rng: Random) -> str:
        """The right value as text."""
        return str(self.value)

    def accepts(self, value: str) -> bool:
        """Only the right value, without leading zeros."""
        return value == str(self.value)

    def slip(self, rng: Random) -> str:
        """Off by a little, by one ten, or with the last two digits swapped."""
        digits = str(self.value)
        while True:
            kind = rng.randrange(4)
            if kind == 3:
                wrong = int(digits[:-2] + digits[-1] + digits[-2]) if len(digits) > 1 else self.value
            else:
                wrong = self.value + rng.choice(((-1, 1), (-3, -2, 2, 3), (-10, 10))[kind])
            if wrong >= 0 and wrong != self.value:
                return str(wrong)

    def misconception(self, rng: Random) -> str:
        """A slip of the kind and size that `rng` chooses."""
        return self.slip(rng)


class Arithmetic:
    """The domain of arithmetic."""

    name = "math"

    def draw(self, rng: Random, parts: int) -> str:
        """Terms of any of the four operations, each as likely."""
        return ",".join(str(_random_term(rng)) for _ in range(parts))

    def parse(self, prompt: str) -> Sequence[Term]:
        """The terms."""
        terms = [_TERM.fullmatch(part) for part in prompt.split(",")]
        if not all(terms):
            raise ValueError(f"prompt {prompt!r}: expected terms such as 23*7,58/6")
        return [Term(int(term[1]), term[2], int(term[3])) for term in terms if term]

    def solution(self, parts: Sequence[Part], values: Sequence[str]) -> str:
        """The lines of an answer; the totals are those of the given values."""
        total, lines = 0, []
        for term, value in zip(parts, values, strict=True):
            total += int(value)
            lines.append(f"{term}={value} {total}")
        return "\n".join(lines)

    def values(self, parts: Sequence[Part], text: str) -> list[str | None]:
        """The value of each line, None where the line is missing, garbled or of another term."""
        lines = [_LINE.fullmatch(line) for line in text.split("\n")]
        lines += [None] * (len(parts) - len(lines))
        return [
            line[2] if line and line[1] == str(term) else None
            for term, line in zip(parts, lines, strict=False)
        ]

    def final(self, text: str) -> str | None:
        """The last total; None where the last line is garbled."""
        line = _LINE.fullmatch(text.rpartition("\n")[2])
        return line[3] if line else None

    def right(self, prompt: str, text: str) -> list[bool]:
        """A line is right where its value is and its total is the sum of the text's own total and value."""
        return [line == expected for line, expected in self._lines(prompt, text)]

    def marks(self, prompt: str, text: str) -> list[float]:
        """After the `=` of each line; its newline tells whether it is complete."""
        marks: list[float] = []
        for line, expected in self._lines(prompt, text):
            start = line.find("=")
            for place in range(len(line)):
                known = 0 <= start < place
                so_far = expected.startswith(line[: place + 1])
                if place + 1 == len(line):
                    so_far = line == expected
                marks.append(float(so_far) if known else UNLABELLED)
            marks.append(float(line == expected))
        return marks[: len(text)]

    def _lines(self, prompt: str, text: str) -> list[tuple[str, str]]:
        """Each line with what it should be after the total above it; both as long as the longer of them."""
        terms, total, result = self.parse(prompt), 0, []
        lines = text.split("\n")
        for number in range(max(len(terms), len(lines))):
            line = lines[number] if number < len(lines) else ""
            if number >= len(terms):
                result.append((line, "\n"))
                continue
            term = terms[number]
            result.append((line, f"{term}={term.value} {total + term.value}"))
            read = _LINE.fullmatch(line)
            total = int(read[3]) if read else total + term.value
        return result


def _random_term(rng: Random) -> Term:
    operation = rng.choice(OPERATIONS)
    left = rng.randrange(12, 33) if operation == "*" else rng.randrange(20, 100)
    return Term(left, operation, rng.randrange(3, 10))
