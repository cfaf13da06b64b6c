"""The lab's problems: right and wrong answers, splits, and labels for training."""

from itertools import islice
from random import Random

import pytest

from toa_exp.lab.domain import UNLABELLED, Domain, grade, is_test, problems
from toa_exp.lab.numerals import english, german, german_ordinal
from toa_exp.lab.task import DOMAINS

NAMES = list(DOMAINS)


def prompts(domain: Domain, parts: int = 6, count: int = 60, *, test: bool = True) -> list[str]:
    return list(islice(problems(domain, "here", parts, test=test), count))


def answered(domain: Domain, prompt: str, wrong: set[int], rng: Random) -> str:
    """An answer with the parts of these numbers wrong."""
    parts = domain.parse(prompt)
    values = [p.slip(rng) if n in wrong else p.answer(rng) for n, p in enumerate(parts)]
    return domain.solution(parts, values)


@pytest.mark.parametrize("name", NAMES)
def test_no_test_problem_is_ever_trained_on(name: str) -> None:
    domain = DOMAINS[name]()
    for parts in (2, 5, 8):
        tested = set(prompts(domain, parts, 300))
        trained = set(prompts(domain, parts, 1200, test=False))
        assert len(tested) == 300 and len(trained) == 1200
        assert not tested & trained
        assert all(map(is_test, tested)) and not any(map(is_test, trained))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [2, 6, 8])
def test_the_dial_is_the_number_of_parts(name: str, parts: int) -> None:
    domain = DOMAINS[name]()
    assert {len(domain.parse(prompt)) for prompt in prompts(domain, parts)} == {parts}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_problems(name: str) -> None:
    domain = DOMAINS[name]()
    assert prompts(domain) == prompts(DOMAINS[name]())
    assert prompts(domain) != list(islice(problems(domain, "there", 6, test=True), 60))


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_part_is_found_and_no_other(name: str) -> None:
    domain, rng = DOMAINS[name](), Random(0)
    for prompt in prompts(domain):
        wrong = set(rng.sample(range(6), rng.randint(0, 6)))
        text = answered(domain, prompt, wrong, rng)
        assert {n for n, right in enumerate(domain.right(prompt, text)) if not right} == wrong
        whole, share = grade(domain, prompt, text)
        assert (whole, share) == (float(not wrong), pytest.approx(1 - len(wrong) / 6))


@pytest.mark.parametrize("name", NAMES)
def test_answers_with_parts_missing_added_or_garbled_are_wrong(name: str) -> None:
    domain, rng = DOMAINS[name](), Random(0)
    for prompt in prompts(domain, count=20):
        text = answered(domain, prompt, set(), rng)
        separator = "\n" if name == "math" else ", "
        first, rest = text.split(separator, 1)
        for broken in ("", rest, first, f"{text}{separator}{first}", text[:-3], f"x{text}", "?"):
            assert grade(domain, prompt, broken)[0] == 0.0, broken


@pytest.mark.parametrize("name", NAMES)
def test_marks_fall_where_an_answer_goes_wrong(name: str) -> None:
    domain, rng = DOMAINS[name](), Random(0)
    for prompt in prompts(domain, count=20):
        right = answered(domain, prompt, set(), rng)
        marks = domain.marks(prompt, right)
        assert len(marks) == len(right)
        assert {m for m in marks if m == m} == {1.0}  # the others are UNLABELLED, not equal to themselves
        assert marks[-1] == 1.0
        wrong = answered(domain, prompt, {3}, rng)
        assert {m for m in domain.marks(prompt, wrong) if m == m} == {0.0, 1.0}
    assert UNLABELLED != UNLABELLED


def test_a_wrong_total_is_a_wrong_line_and_the_next_is_judged_by_it() -> None:
    domain = DOMAINS["math"]()
    assert domain.right("20+3,30-4", "20+3=23 24\n30-4=26 50") == [False, True]
    assert domain.final("20+3=23 24\n30-4=26 50") == "50"
    assert domain.final("20+3=23 24\n30-4=") is None


def test_german_numbers() -> None:
    assert [german(n) for n in (1, 7, 16, 21, 30, 99)] == [
        "eins", "sieben", "sechzehn", "einundzwanzig", "dreißig", "neunundneunzig",
    ]  # fmt: skip
    assert [german_ordinal(n) for n in (1, 3, 7, 8, 19, 20, 31)] == [
        "ersten", "dritten", "siebten", "achten", "neunzehnten", "zwanzigsten", "einunddreißigsten",
    ]  # fmt: skip
    assert [english(n) for n in (13, 40, 58)] == ["thirteen", "forty", "fifty-eight"]


def test_several_words_meet_a_wish() -> None:
    domain = DOMAINS["instructions"]()
    prompt = "an animal with b, a rhyme of light."
    assert grade(domain, prompt, "bear, night.") == (1.0, 1.0)
    assert grade(domain, prompt, "bat, bright.") == (1.0, 1.0)
    assert grade(domain, prompt, "cat, light.") == (0.0, 0.0)
