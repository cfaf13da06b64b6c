"""Progress is drawn on a terminal and nowhere else."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from helpers import cli

RUN = ["run", "task=simulated", "task.problems=40", "budget.samples=4"]


def test_a_terminal_sees_rates_failures_and_time_left(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *RUN],
        cwd=tmp_path,
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
    assert process.wait() == 0
    text = seen.decode()
    for word in ("simulated toa seed=0", "40/40", "samples/s", "tokens/s", "0 failed", "<"):
        assert word in text, text


def test_elsewhere_it_is_quiet(tmp_path):
    result = cli(*RUN, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert "budget" in result.stdout
