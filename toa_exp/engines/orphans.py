"""Sees to it that an engine's processes end with this one, however it ends.

vLLM's processes outlive a parent that was killed, and would keep the GPU's memory from the next run.
So a small process watches over them: it notices that its standard input is closed, which the kernel
does for the dead, and ends all processes that carry a mark in their environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

_NAME = "TOA_EXP_GUARDED"
_GRACE = 10.0  # seconds


class Guard:
    """Processes started while `environment` is in force end when this is closed, or with this process."""

    def __init__(self) -> None:
        mark = uuid.uuid4().hex
        self.environment = {_NAME: mark}
        self._watch = subprocess.Popen(
            [sys.executable, "-m", __name__, mark],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a signal to this process's group is not meant for it
        )

    def close(self) -> None:
        """End what is left of the processes."""
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait()


def _marked(mark: str) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_NAME) == mark:
                found.append(process.pid)
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            continue
    return found


def _end(mark: str) -> None:
    """Ask all marked processes to end, and make them."""
    import psutil

    processes = []
    for pid in _marked(mark):
        try:
            processes.append(psutil.Process(pid))
            processes[-1].terminate()
        except psutil.Error:
            continue
    for process in psutil.wait_procs(processes, _GRACE)[1]:
        try:
            process.kill()
        except psutil.Error:
            continue


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _end(sys.argv[1])
