"""Faults of servers in the middle of a run: it goes on, or stops with a clear message and resumes.

In each the result is that of an undisturbed run, and nothing that was stored is asked for again.
"""

import time
from pathlib import Path

import pytest
from process import NEVER, Service, arguments, begin, service, stored, toa, trajectories, until

pytestmark = pytest.mark.slow

FAULTS = ["429", "500", "hang", "truncated", "cut", "empty"]
IMPATIENT = ["engine.longest_wait=2", "reward.longest_wait=2"]
SAID = {
    "429": "has too much to do (429: slow down) and asks to wait",
    "500": "failed (500: boom)",
    "hang": "gave no answer within 1 s",
    "truncated": "answered with no",
    "cut": "broke the connection",
    "empty": "answered with no",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object], int]:
    """Questions, the trajectories of a run without faults, and how many requests it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    questions = folder / "questions.jsonl"
    questions.write_text(
        "".join(f'{{"id": "q{i}", "prompt": "{i}?", "reference": "{i}"}}\n' for i in range(12))
    )
    with service(folder) as server:
        result = toa(folder, *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        assert set(server.answered.values()) == {1}
        return questions, trajectories(folder), server.answered.total()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(fault, undisturbed, tmp_path):
    questions, expected, total = undisturbed
    with service(tmp_path, fault, 10, 17) as server:
        result = toa(tmp_path / "run", *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        assert trajectories(tmp_path / "run") == expected
        assert server.answered.total() == total


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_stops_the_run_which_resumes(fault, undisturbed, tmp_path):
    questions, expected, total = undisturbed
    run = tmp_path / "run"
    with service(tmp_path, fault, 25, NEVER) as server:
        result = toa(run, *arguments(questions, server.url, "retries=1", *IMPATIENT))
        assert result.returncode == 1
        assert SAID[fault] in result.stderr and "problems have no answer" in result.stderr
        assert "the same command goes on from there" in result.stderr and "Traceback" not in result.stderr
        before = server.answered
    draws, scores = stored(run)
    assert len(draws) + len(scores) >= 25 - 4  # what was under way when the process ended may be lost
    with service(tmp_path) as server:
        result = toa(run, *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        assert trajectories(run) == expected
        again = server.answered & before
        assert server.answered.total() + before.total() - again.total() == total
        assert not again


def test_a_server_that_is_killed_and_comes_back(undisturbed, tmp_path):
    questions, expected, total = undisturbed
    server = Service(tmp_path)
    try:
        server.start()
        process = begin(tmp_path / "run", *arguments(questions, server.url))
        until(lambda: server.answered.total() > 20)
        server.kill()
        before = server.answered.total()
        assert before < total
        time.sleep(3.0)  # all retries together wait for a second at most
        server.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert trajectories(tmp_path / "run") == expected
    finally:
        server.kill()


def test_a_server_that_is_killed_and_stays_away(undisturbed, tmp_path):
    questions, expected, total = undisturbed
    server = Service(tmp_path)
    run = tmp_path / "run"
    try:
        server.start()
        process = begin(run, *arguments(questions, server.url, *IMPATIENT))
        until(lambda: server.answered.total() > 20)
        server.kill()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1 and "cannot be reached" in errors and "Traceback" not in errors
        assert "longest_wait=2" in errors
        kept = stored(run)
        server.forget()
        server.start()
        result = toa(run, *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        assert trajectories(run) == expected
        assert server.answered.total() == total - sum(map(len, kept))
        draws, scores = stored(run)
        assert kept[0] <= draws and kept[1] <= scores
    finally:
        server.kill()


def test_refinements_over_the_window_end_no_run_and_stay_so_when_it_resumes(undisturbed, tmp_path):
    questions, *_ = undisturbed
    with service(tmp_path, "narrow", 0, NEVER) as server:
        result = toa(tmp_path / "whole", *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        whole = trajectories(tmp_path / "whole")
        steps = [step for record in whole for step in record["samples"]]
        failed = [step for step in steps if step["failure"] == "context_window"]
        assert failed and all(step["parents"] for step in failed) and len(failed) < len(steps) / 2
        server.forget()
        process = begin(tmp_path / "run", *arguments(questions, server.url))
        until(lambda: server.answered.total() > 20)
        process.kill()
        process.communicate()
        kept = stored(tmp_path / "run")
        assert 0 < len(kept[0]) < len(steps)
        result = toa(tmp_path / "run", *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        assert trajectories(tmp_path / "run") == whole
        draws, scores = stored(tmp_path / "run")
        assert kept[0] <= draws and kept[1] <= scores


def test_a_prompt_over_the_window_is_stored_as_such_and_not_asked_again(undisturbed, tmp_path):
    questions, *_ = undisturbed
    with service(tmp_path, "window", 0, NEVER) as server:
        given = arguments(questions, server.url, "task.limit=2")
        for _ in range(2):
            result = toa(tmp_path / "run", *given)
            assert result.returncode == 1
            assert "every sample failed: agent 'ash' (context_window), agent 'elm'" in result.stderr
            assert "choose models with a longer one" in result.stderr
        assert not server.answered
    assert len(stored(tmp_path / "run")[0]) > 2
    result = toa(tmp_path / "run", *arguments(questions, "http://127.0.0.1:9", "task.limit=2"))
    assert result.returncode == 1 and "cannot be reached" not in result.stderr
