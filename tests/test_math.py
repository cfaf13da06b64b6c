"""Math-Verify in its own process: decisions, time limit, hostile input."""

import asyncio
import json

import pytest

pytest.importorskip("math_verify")
from toa_exp.metrics.math import MathVerify


def verdicts(pairs, **options):
    async def judge():
        math = MathVerify(**options)
        try:
            return [await math.correct(gold, text) for gold, text in pairs]
        finally:
            await math.close()

    return asyncio.run(judge())


def test_equal_and_unequal_answers():
    assert verdicts(
        [
            (r"\frac{1}{2}", r"So we get \boxed{0.5}"),
            ("18", "Answer: 18"),
            ("18", r"Answer: \boxed{18}"),
            ("18", "Answer: 19"),
            (r"\sqrt{2}", r"$\sqrt{3}$"),
            ("2", ""),
        ]
    ) == [True, True, True, False, False, False]


def test_a_hostile_answer_stops_nothing(caplog):
    hostile = r"\boxed{9^{9^{9^{9^{9}}}}!}"
    pairs = [("18", "Answer: 18"), ("18", hostile), ("19", "Answer: 19"), ("5", "x" * 100_000 + "\0\u202e"),
             ("7", "Answer: 7")]  # fmt: skip
    assert verdicts(pairs, timeout=2.0) == [True, False, True, False, True]


def test_a_worker_that_was_killed_is_replaced():
    async def judge():
        math = MathVerify()
        first = await math.correct("18", "Answer: 18")
        worker = math._idle.get_nowait()
        worker._process.kill()
        math._idle.put_nowait(worker)
        second = await math.correct("19", "Answer: 19")
        await math.close()
        return first, second

    assert asyncio.run(judge()) == (True, True)


def test_a_file_of_the_users_named_like_a_library_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    assert verdicts([("18", "Answer: 18")]) == [True]


def test_decisions_are_those_recorded(shared):
    path = shared / "data" / "math" / "answer_equivalence.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["math_verify"]["wrapped"] is not None]
    given = [(row["gold"], row["pred"]) for row in rows]
    expected = [row["math_verify"]["wrapped"] for row in rows]
    found = verdicts(given, timeout=20.0)
    different = [row["id"] for row, want, got in zip(rows, expected, found, strict=True) if bool(want) != got]
    assert different == []
