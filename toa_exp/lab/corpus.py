"""Training texts: what an agent of given strengths would write, afresh, over a draft, over several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from toa_exp.lab.domain import Domain, Part, problems
from toa_exp.lab.personas import Persona, most_frequent
from toa_exp.lab.training import Example
from toa_exp.lab.writer import Writer

Values = Sequence[str | None]
Attempts = Sequence[tuple[str, Sequence[str]]]
"""Problems with answers that the agents themselves sampled."""

AFRESH = 0.5
"""The share of fresh answers in lessons; with less of them the lessons blur what an agent does not know."""


def fresh(persona: Persona, parts: Sequence[Part], rng: Random) -> list[str]:
    """Values of a first attempt."""
    return [_attempt(persona, part, rng) for part in parts]


def refined(persona: Persona, parts: Sequence[Part], draft: Values, rng: Random) -> list[str]:
    """Values after one pass over a draft."""
    return [_pass(persona, part, value, rng) for part, value in zip(parts, draft, strict=True)]


def aggregated(persona: Persona, parts: Sequence[Part], drafts: Sequence[Values], rng: Random) -> list[str]:
    """Values from several drafts: in its own skill a right one where there is one, else the most frequent."""
    values = []
    for number, part in enumerate(parts):
        given = [value for draft in drafts if (value := draft[number]) is not None]
        right = [value for value in given if part.accepts(value)]
        chosen: str | None = None
        if given:
            chosen = right[0] if right and part.table[0] == persona.strong else most_frequent(given)
        values.append(_pass(persona, part, chosen, rng))
    return values


def _attempt(persona: Persona, part: Part, rng: Random) -> str:
    return part.answer(rng) if rng.random() < persona.right(part.table) else persona.mistake(part, rng)


def _pass(persona: Persona, part: Part, value: str | None, rng: Random) -> str:
    if value is None:
        return _attempt(persona, part, rng)
    if part.table[0] != persona.strong:
        return value if rng.random() < persona.copy else _attempt(persona, part, rng)
    if part.accepts(value):
        return value if rng.random() < persona.keep else part.slip(rng)
    return part.answer(rng) if rng.random() < persona.repair else value


def teacher(
    domain: Domain, writer: Writer, span: tuple[int, int], seed: str, drafts: float = 0.35
) -> Iterator[Example]:
    """What all agents start from: right answers, and (a share `drafts`) half-repaired drafts with slips."""
    rng = Random(f"teacher/{seed}")
    for prompt in problems(domain, seed, span, test=False):
        parts = domain.parse(prompt)
        right = [part.answer(rng) for part in parts]
        if rng.random() >= drafts:
            yield writer.example(prompt, (), domain.solution(parts, right))
            continue
        count = 1 if rng.random() < 0.7 else rng.randint(2, 4)
        rate = rng.uniform(0.1, 0.7)
        given = [
            [p.slip(rng) if rng.random() < rate else v for p, v in zip(parts, right, strict=True)]
            for _ in range(count)
        ]
        kept = [most_frequent([draft[number] for draft in given]) for number in range(len(parts))]
        answer = [v if rng.random() < 0.5 else k for v, k in zip(right, kept, strict=True)]
        texts = [domain.solution(parts, draft) for draft in given]
        yield writer.example(prompt, texts, domain.solution(parts, answer))


def first_attempts(
    domain: Domain, writer: Writer, persona: Persona, span: tuple[int, int], seed: str
) -> Iterator[Example]:
    """Fresh answers of an agent."""
    rng = Random(f"{persona.name}/{seed}")
    for prompt in problems(domain, f"{persona.name}/{seed}", span, test=False):
        parts = domain.parse(prompt)
        yield writer.example(prompt, (), domain.solution(parts, fresh(persona, parts, rng)))


def lessons(
    domain: Domain,
    writer: Writer,
    persona: Persona,
    span: tuple[int, int],
    attempts: Attempts,
    seed: str,
) -> Iterator[Example]:
    """Fresh answers (a share AFRESH); of the others, over the agents' own samples, five refine and two
    aggregate."""
    rng = Random(f"{persona.name}/{seed}")
    direct = first_attempts(domain, writer, persona, span, f"{seed}/direct")
    single = AFRESH + (1 - AFRESH) * 5 / 7
    while True:
        kind = rng.random()
        if kind < AFRESH:
            yield next(direct)
            continue
        prompt, answers = rng.choice(attempts)
        parts = domain.parse(prompt)
        count = 1 if kind < single else rng.randint(2, 4)
        drafts = [_draft(domain, parts, answers, rng) for _ in range(count)]
        read = [domain.values(parts, draft) for draft in drafts]
        if len(drafts) == 1:
            values = refined(persona, parts, read[0], rng)
        else:
            values = aggregated(persona, parts, read, rng)
        yield writer.example(prompt, drafts, domain.solution(parts, values))


def _draft(domain: Domain, parts: Sequence[Part], answers: Sequence[str], rng: Random) -> str:
    """A sampled answer, or (in half of the cases) one pieced together from the values of all samples.

    The latter are as drafts look after some rounds of refinement: mostly right, in parts by others.
    """
    if rng.random() < 0.5:
        return rng.choice(answers)
    read = [domain.values(parts, answer) for answer in answers]
    leaning = rng.random()
    values: list[str] = []
    for number, part in enumerate(parts):
        given = [value for v in read if (value := v[number]) is not None]
        if not given:
            return rng.choice(answers)
        right = [value for value in given if part.accepts(value)]
        values.append(rng.choice(right if right and rng.random() < leaning else given))
    return domain.solution(parts, values)
