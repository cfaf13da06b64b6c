"""Math-Verify in its own process: decisions, time limit, hostile input."""

import asyncio
import json

import pytest

pytest.importorskip("math_verify")
from toa_exp.metrics.math import MathVerify


def verdicts(pairs, ask=MathVerify.correct, **options):
    async def judge():
        math = MathVerify(**options)
        try:
            return [await ask(math, gold, text) for gold, text in pairs]
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
    assert verdicts(pairs, timeout=2.0) == [True, None, True, False, True]
    # A worker that ended by its limit is known for it: no second try, no warning of asyncio.
    assert [record.name for record in caplog.records] == ["toa_exp.metrics.math"]


@pytest.mark.parametrize(
    "answer",
    [
        r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}",
        r"\begin{bmatrix}1&2\\[1ex]3&4\end{bmatrix}",
        r"\$18.90",
    ],
)
def test_a_rows_end_and_an_amount_are_no_delimiters(answer):
    texts = [answer, f"Answer: {answer}", rf"So \boxed{{{answer}}}.", f"It is ${answer}$"]
    assert verdicts([(answer, text) for text in texts]) == [True] * 4


def test_an_amount_and_its_number_are_equal():
    assert verdicts([(r"\$36", r"\boxed{36}"), ("36", r"Answer: \$36"), (r"\$36", r"\$37")]) == [
        True,
        True,
        False,
    ]


def test_bare_answers_are_read_as_published_decisions_read_them():
    row = r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}"
    pairs = [(r"\$18.90", r"\$18.90"), (row, row), (r"\frac12", "0.5"), ("$36$", "36")]
    assert verdicts(pairs, MathVerify.equal) == [False, False, True, True]


def test_what_exhausts_the_worker_has_no_verdict(monkeypatch):
    math_verify = pytest.importorskip("math_verify")
    import io

    from toa_exp.metrics import math_worker

    def parse(text, **options):
        raise {"deep": RecursionError, "large": MemoryError}[text]

    monkeypatch.setattr(math_verify, "parse", parse)
    monkeypatch.setattr(math_worker.resource, "setrlimit", lambda *limits: None)
    asked = "".join(json.dumps(["1", text][::-1]) + "\n" for text in ("deep", "large"))
    answers = io.StringIO()
    math_worker.main(io.StringIO(asked), answers, 5.0)
    assert answers.getvalue().split() == ["ready", "null", "null"]


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
    found = verdicts(given, MathVerify.equal, timeout=20.0)
    different = [row["id"] for row, want, got in zip(rows, expected, found, strict=True) if bool(want) != got]
    assert different == []


def ballots(*texts, **options):
    async def judge():
        math = MathVerify(**options)
        try:
            return await math.ballots(texts)
        finally:
            await math.close()

    return asyncio.run(judge())


def test_equal_answers_are_one_ballot_however_they_are_written():
    found = ballots(
        "4", "5", r"\boxed{5}", r"So \boxed{\frac{10}{2}}.", "It is $5$ apples", "Answer: 5.0", r"\boxed{4}"
    )
    assert found == ["4", "5", "5", "5", "5", "5", "4"]


def test_what_states_no_answer_is_no_ballot():
    assert ballots("", "I do not know", "no idea", "Answer: 7", " ") == [None, None, None, "7", None]


@pytest.mark.slow
def test_a_hostile_answer_does_not_stop_a_vote():
    hostile = r"9^{9^{9^{9^{9}}}}!"
    found = ballots(f"\\boxed{{{hostile}}}", "{" * 100_000, "7", r"\boxed{\frac{14}{2}}", timeout=2.0)
    assert found[0] in (hostile, None) and found[2:] == ["7", "7"]


def test_an_answer_that_cannot_be_compared_does_not_split_the_others(monkeypatch):
    async def verified(self, reference, answer):
        return (
            None if "$x$" in (reference, answer) else float(reference.strip("$")) == float(answer.strip("$"))
        )

    async def asked(self, key):
        return key[0].strip("$")

    monkeypatch.setattr(MathVerify, "_verified", verified)
    monkeypatch.setattr(MathVerify, "_asked", asked)
    assert ballots("x", "1", "1.0", "2", "2.0", "1.00") == ["x", "1", "1", "2", "2", "1"]
