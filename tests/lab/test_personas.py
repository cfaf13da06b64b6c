"""Who knows what, and in which precision it is learnt."""

from itertools import islice
from random import Random
from types import MappingProxyType

import pytest
import torch

from toa_exp.errors import BadInput
from toa_exp.lab.arithmetic import Arithmetic, Term
from toa_exp.lab.card import knowledge
from toa_exp.lab.corpus import fresh
from toa_exp.lab.domain import Part, problems
from toa_exp.lab.personas import Persona
from toa_exp.lab.plans import PLANS
from toa_exp.lab.training import training_dtype
from toa_exp.lab.translation import Phrase

SURE = Persona("ada", "*", share=0.5, known_right=0.0)


def mistakes(persona: Persona, part: Part) -> set[str]:
    """What it answers in many attempts at a part."""
    return {fresh(persona, [part], Random(number))[0] for number in range(60)}


def test_a_misconception_is_the_same_mistake_again_and_again() -> None:
    terms = [Term(57, operation, number) for operation in "+-/" for number in range(3, 10)]
    found = [mistakes(SURE, term) for term in terms]
    assert all(str(term.value) not in answers for term, answers in zip(terms, found, strict=True))
    once = sum(len(answers) == 1 for answers in found)
    assert 0 < once < len(terms) and all(len(answers) == 1 or len(answers) > 3 for answers in found)
    other = Persona("ben", "*", share=0.0, known_right=0.0)
    assert any(mistakes(other, term) != mistakes(SURE, term) for term in terms)


def test_a_misconception_of_translation_has_another_word_in_its_place() -> None:
    for seed in range(20):
        counts = [Phrase("count", "keys", number) for number in (2, 17, 42)]
        wrong = [part.misconception(Random(seed)).split() for part in counts]
        assert [number for number, _ in wrong] == ["zwei", "siebzehn", "zweiundvierzig"]
        assert len({noun for _, noun in wrong}) == 1 and wrong[0][1] != "Schlüssel"
        prices = [Phrase("price", "", number, 7) for number in (40, 42, 49)]
        tens = {part.misconception(Random(seed)).split()[1].rpartition("und")[2] for part in prices}
        assert len(tens) == 1 and tens != {"vierzig"}


@pytest.mark.parametrize("task", PLANS)
def test_a_misconception_is_wrong(task: str) -> None:
    domain = PLANS[task].domain
    for text in islice(problems(domain, "here", 8, test=True), 50):
        for number, part in enumerate(domain.parse(text)):
            wrong = part.misconception(Random(number))
            assert not part.accepts(wrong) and wrong == part.misconception(Random(number))


def test_mistakes_in_what_it_knows_vary() -> None:
    persona = Persona("ada", "*", share=1.0, known_right=0.0)
    assert len(mistakes(persona, Term(57, "+", 4))) > 3


def test_a_card_tells_known_from_unknown_outside_of_the_own_skill() -> None:
    domain = Arithmetic()
    prompt = next(problems(domain, "here", 8, test=True))
    parts = domain.parse(prompt)
    right = domain.solution(parts, [str(part.value) for part in parts])
    believed = domain.solution(parts, [SURE.mistake(part, Random(0)) for part in parts])
    other = [part for part in parts if part.operation != "*"]
    known = sum(SURE.knows(part.table) for part in other)
    assert 0 < known < len(other) < len(parts)
    assert knowledge(SURE, domain, [prompt], [right]) == {"known": 1.0, "unknown": 1.0}
    mixed = domain.solution(
        parts,
        [str(part.value) if SURE.knows(part.table) else SURE.mistake(part, Random(0)) for part in parts],
    )
    assert knowledge(SURE, domain, [prompt], [mixed]) == {"known": 1.0, "unknown": 0.0}
    assert knowledge(SURE, domain, [prompt] * 2, [right, believed]) == {"known": 0.5, "unknown": 0.5}


@pytest.mark.parametrize("task", PLANS)
def test_no_agent_knows_everything_and_somebody_is_strong_in_each_skill(task: str) -> None:
    domain, personas = PLANS[task].domain, PLANS[task].personas
    parts = [
        part for text in islice(problems(domain, "here", 6, test=True), 50) for part in domain.parse(text)
    ]
    for part in parts:
        assert sum(persona.strong == part.table[0] for persona in personas) == 1
    for persona in personas:
        known = sum(persona.knows(part.table) for part in parts) / len(parts)
        assert 0.4 < known < 0.8
        for skill in {part.table[0] for part in parts} - {persona.strong}:
            assert {persona.knows(part.table) for part in parts if part.table[0] == skill} == {True, False}


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_a_processor_without_bfloat16_trains_in_float32(
    machine: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(machine))
    assert training_dtype("auto", torch.device("cpu")) is dtype
    assert training_dtype("float32", torch.device("cpu")) is torch.float32
    assert training_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="float16"):
        training_dtype("float16", torch.device("cpu"))
