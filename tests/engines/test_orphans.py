"""Processes that must not outlive the run."""

import os
import signal
import subprocess
import sys
import time

import pytest

psutil = pytest.importorskip("psutil")

PARENT = """
import os, subprocess, sys, time, psutil
from toa_exp.engines.orphans import MARK, Guard
guard = Guard()
if sys.argv[1] == "marked":
    os.environ.update(MARK)
if sys.argv[1] == "beside a zombie":
    zombie = subprocess.Popen(["true"])
    time.sleep(0.5)
child = [sys.executable, "-c", "import time; time.sleep(600)"]
parent = [sys.executable, "-c", f"import subprocess; subprocess.run({child})"]
process = subprocess.Popen(parent)
while not (grand := psutil.Process(process.pid).children()):
    time.sleep(0.05)
if sys.argv[1] == "starting":
    time.sleep(3)
elif sys.argv[1] != "marked":
    guard.settled()
if sys.argv[1] == "released":
    guard.close()
print(process.pid, grand[0].pid, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("how", ["starting", "marked", "settled", "beside a zombie", "released"])
def test_what_descends_from_a_process_that_is_killed_ends_unless_released(how):
    with subprocess.Popen([sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        descendants = [*map(int, parent.stdout.readline().split())]
        if how in ("settled", "beside a zombie"):
            time.sleep(0.5)
        parent.send_signal(signal.SIGKILL)
    if how == "released":
        time.sleep(1.0)
        assert not any(map(gone, descendants))
        for pid in descendants:
            os.kill(pid, signal.SIGKILL)
        return
    deadline = time.monotonic() + 60
    while not all(map(gone, descendants)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, descendants))
