"""Sees to it that an engine's processes end with this one, however it ends.

vLLM's processes outlive a parent that was killed, and would keep the GPU's memory from the next run.
So a small process watches over them: the kernel closes its standard input when this process dies.
It knows them by descent, and by `MARK` those that were started in the last moment.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_GRACE = 10.0  # seconds
_OFTEN = 1.0  # seconds
_SETTLED, _RELEASED = b"s", b"r"
_NAME = "TOA_EXP_ENGINE_OF"
MARK = {_NAME: uuid.uuid4().hex}  # belongs into the environment of an engine's processes
_SPARED = (__name__ if __name__ != "__main__" else "toa_exp.engines.orphans", "resource_tracker")


class Guard:
    """Processes that descend from this one, started between its making and `settled`, end with it."""

    def __init__(self) -> None:
        self._watch = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid()), MARK[_NAME]],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a signal to this process's group is not meant for it
        )

    def settled(self) -> None:
        """All processes are there."""
        self._tell(_SETTLED)

    def close(self) -> None:
        """They have ended, or need no guard any more."""
        self._tell(_RELEASED)
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait()

    def _tell(self, what: bytes) -> None:
        assert self._watch.stdin is not None
        try:
            self._watch.stdin.write(what)
            self._watch.stdin.flush()
        except BrokenPipeError:  # somebody ended it, which ends no run
            pass


def _descendants(pid: int) -> list[psutil.Process]:
    import psutil

    try:
        return [one for one in psutil.Process(pid).children(recursive=True) if not _spared(one)]
    except psutil.NoSuchProcess:  # it ended meanwhile
        return []


def _spared(process: psutil.Process) -> bool:
    """Whether a process is not to be ended, or has ended already."""
    import psutil

    try:
        return any(name in argument for argument in process.cmdline() for name in _SPARED)
    except psutil.Error:
        return True


def _marked(mark: str) -> list[psutil.Process]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_NAME) == mark and not _spared(process):
                found.append(process)
        except psutil.Error:  # it ended meanwhile, or is somebody else's
            continue
    return found


def _watch(pid: int, mark: str) -> None:
    """Note the descendants of a process until it settles, and end them where it dies unreleased."""
    noted = {}
    timeout: float | None = _OFTEN
    while True:
        said = os.read(0, 1) if select.select([0], [], [], timeout)[0] else None
        if said == _RELEASED:
            return
        noted.update({process.pid: process for process in _descendants(pid)})
        if said == _SETTLED:
            timeout = None
        if said == b"":
            time.sleep(_OFTEN)  # one that is being started has its environment then
            _end([*noted.values()], mark)
            return


def _end(noted: list[psutil.Process], mark: str) -> None:
    """Ask processes to end, and make those that do not; psutil tells them from others of their id."""
    import psutil

    noted += [child for process in noted for child in _descendants(process.pid)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        processes = {*noted, *_marked(mark)}
        for process in processes:
            try:
                end(process)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, _GRACE)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
