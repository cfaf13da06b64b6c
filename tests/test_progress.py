"""What a run says while it is under way and in the end."""

import asyncio
import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

from helpers import cli
from tqdm import tqdm

from toa_exp import progress
from toa_exp.commands import run as run_command
from toa_exp.curves import Curve
from toa_exp.progress import Progress, Stage
from toa_exp.sampler import Counts

RUN = ["run", "task=simulated", "task.problems=40", "budget.samples=4"]


def seen_on_a_terminal(columns: int, arguments: list[str], folder: Path) -> str:
    """What a terminal of so many columns is sent; 0 is one that does not know."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the terminal's other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(master)
    assert process.wait() == 0, seen
    return seen.decode()


def test_a_terminal_sees_rates_failures_and_time_left(tmp_path):
    text = seen_on_a_terminal(200, RUN, tmp_path)
    for word in ("simulated toa seed=0", "40/40", "samples/s", "tokens/s", "0 failed", "<"):
        assert word in text, text


def test_a_terminal_that_does_not_tell_its_width_sees_a_bar_too(tmp_path):
    assert "40/40" in seen_on_a_terminal(0, RUN, tmp_path)


def test_the_bar_moves_before_the_first_problem_is_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_bar", lambda *given: tqdm(total=given[0], file=sys.stderr, ncols=150))
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    counts = Counts()
    bar = Progress(3, "toa", counts)

    async def draw() -> None:
        drawing = asyncio.create_task(bar.watch())
        counts.samples = 17
        while "17 samples" not in (seen := capsys.readouterr().err):
            await asyncio.sleep(0.01)
        assert "0/3" in seen
        drawing.cancel()

    asyncio.run(asyncio.wait_for(draw(), 30.0))
    bar.close()


def test_elsewhere_the_log_says_how_things_stand(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LINE", 0.01)
    counts = Counts()
    bar = Progress(3, "toa", counts)

    async def watch() -> None:
        watching = asyncio.create_task(bar.watch())
        counts.samples = 17
        bar.advance()
        while not caplog.messages:
            await asyncio.sleep(0.01)
        watching.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(asyncio.wait_for(watch(), 30.0))
    bar.close()
    assert caplog.messages[0].startswith("1 of 3 problems done; 17 samples, ")


def test_a_stage_elsewhere_logs_its_start_and_its_end(caplog):
    log = logging.getLogger("toa_exp.here")
    with caplog.at_level(logging.INFO), closing(Stage("teacher", 4, "step", log)) as stage:
        for _ in range(4):
            stage.advance(1, "loss 0.5")
    first, last = caplog.messages
    assert first == "teacher: 4 steps"
    assert "4/4 steps" in last and "0 s left" in last and "loss 0.5" in last


def test_elsewhere_it_is_quiet(tmp_path):
    result = cli(*RUN, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert "budget" in result.stdout


def test_problems_without_an_answer_are_told_by_their_reasons(caplog):
    watch = run_command._Watch(Curve("toa", [4.0], {}), Progress(9, "toa", Counts()), Counts())
    for number in range(8):
        watch.parked(f"q{number}", "the reward is not there")
    watch.parked("q8", "the answer is cut")
    watch.parked("q8", "and again")
    said = str(run_command._incomplete(watch.reasons, 9))
    assert (
        "9 of 9 problems have no answer:\n  q0, q1, q2, q3, q4 and 3 more: the reward is not there\n" in said
    )
    assert "\n  q8: the answer is cut\n" in said and "and again" not in said
    assert [record.args[0] for record in caplog.records if record.levelname == "WARNING"] == ["q0", "q8"]
