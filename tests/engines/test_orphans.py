"""Processes that must not outlive the run."""

import os
import signal
import subprocess
import sys
import time

import pytest

psutil = pytest.importorskip("psutil")

PARENT = """
import os, subprocess, sys, time
from toa_exp.engines.orphans import Guard
guard = Guard()
child = [sys.executable, "-c", "import time; time.sleep(600)"]
processes = [subprocess.Popen(child, env={**os.environ, **guard.environment}), subprocess.Popen(child)]
print(*(process.pid for process in processes), flush=True)
if sys.argv[1] == "close":
    guard.close()
    print("closed", flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("how", ["close", "kill"])
def test_marked_processes_end_with_the_guard_or_its_process_and_no_others(how):
    with subprocess.Popen([sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        marked, other = map(int, parent.stdout.readline().split())
        if how == "close":
            assert parent.stdout.readline() == "closed\n"
            assert gone(marked)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not gone(marked) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(marked)
    assert not gone(other)
    os.kill(other, signal.SIGKILL)
