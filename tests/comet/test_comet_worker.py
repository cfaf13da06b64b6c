"""The process that scores, by a script that stands for it: order, faults, and its end."""

import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from toa_exp.comet.process import WORKER, Recipe, Worker
from toa_exp.comet.worker import _answer
from toa_exp.errors import BadInput, Unavailable

FAKE = Path(__file__).with_name("fake_worker.py")


def recipe(checkpoint="model.ckpt", timeout=60.0, startup=60.0):
    spec = {"checkpoint": checkpoint, "device": "cpu"}
    return Recipe("metric", Path(sys.executable), spec, startup, timeout, FAKE)


def rows(*texts):
    return [{"src": "ab", "mt": text} for text in texts]


@pytest.fixture
def worker():
    made = Worker(recipe())
    yield made
    made.close()


def test_scores_come_in_order_and_one_process_serves_many_batches(worker):
    first = worker.ask(rows("aaa", "a", "aa"))
    assert [(one.score, one.tokens, one.full) for one in first] == [
        (0.03, 5, False),
        (0.01, 3, False),
        (0.02, 4, False),
    ]
    process = worker._process
    (second,) = worker.ask(rows("a" * 60))
    assert second.full and second.score == 0.6
    assert worker._process is process


def test_texts_of_any_kind_go_through(worker):
    texts = ["", "x" * 100_000, "\0", "שלום", "line\nbreak", "\u2028", '"}\\', "{" * 5000]
    assert [one.score for one in worker.ask(rows(*texts))] == [len(text) / 100 for text in texts]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("die", "killed by signal 9; for want of memory"),
        ("garbage", "Some weights were not initialised"),
        ("short", "what is no answer"),
        ("late", "what is no answer"),
        ("words", "what is no answer"),
        ("memory", "lower metric.max_batch"),
        ("fail", "KeyError"),
    ],
)
def test_a_fault_is_an_error_and_the_next_batch_is_scored(worker, text, said):
    with pytest.raises(Unavailable, match=said):
        worker.ask(rows("a", text))
    assert [one.score for one in worker.ask(rows("a", "aa"))] == [0.01, 0.02]


def test_a_worker_that_hangs_is_ended():
    worker = Worker(recipe(timeout=1.0))
    try:
        worker.ask(rows("a"))
        process = worker._process
        with pytest.raises(Unavailable, match=r"within 1 s.*metric\.timeout"):
            worker.ask(rows("hang"))
        assert process.returncode == -signal.SIGKILL
        assert worker.ask(rows("a"))[0].score == 0.01
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("checkpoint", "error", "said"),
    [
        ("fatal.ckpt", BadInput, "the checkpoint has no weight"),
        ("mute.ckpt", Unavailable, "ended with status 1.*cannot open shared object file"),
        ("slow.ckpt", Unavailable, "did not answer within 0.5 s"),
    ],
)
def test_a_worker_that_does_not_start_says_why(checkpoint, error, said):
    worker = Worker(recipe(checkpoint, startup=0.5 if checkpoint == "slow.ckpt" else 60.0))
    with pytest.raises(error, match=said):
        worker.ask(rows("a"))
    assert worker._process is None


def test_ending_it_from_elsewhere_stops_a_batch_at_work_and_all_later_ones(worker):
    worker.ask(rows("a"))
    timer = threading.Timer(0.3, worker.end)
    timer.start()
    with pytest.raises(Unavailable, match="killed"):
        worker.ask(rows("hang"))
    with pytest.raises(Unavailable, match="was ended"):
        worker.ask(rows("a"))
    timer.join()


SLOW = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("worker", {worker!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

class Slow:
    def __init__(self, spec):
        self.comet = self
    def score(self, rows):
        time.sleep(3600)

worker._Model = Slow
worker._answer = lambda model, rows: model.score(rows)
worker.main()
"""
PARENT = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, sys.argv[1], "{}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
worker.stdin.write(b'{"id": 0, "rows": []}\\n')
worker.stdin.flush()
print(worker.pid, flush=True)
time.sleep(3600)
"""


def test_the_real_script_ends_in_the_middle_of_a_batch_when_its_parent_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.format(worker=str(WORKER)))
    command = [sys.executable, "-c", PARENT, str(tmp_path / "slow.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < until, "the worker outlived its parent"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_batch_had_in_memory_is_given_back_once_it_has_failed(monkeypatch):
    held, kept = [], []

    class Full:
        def score(self, rows):
            activations = torch.zeros(1)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: kept.append(held[0]() is not None))
    answer = _answer(Full(), rows("a"))
    assert answer == {"error": "memory", "message": "OutOfMemoryError: CUDA out of memory"}
    assert kept == [False]
