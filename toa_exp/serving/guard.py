"""Runs a command, and ends it with all that it started once whoever asked for it is gone.

Standard input is a pipe that the parent holds open. Its end, which comes however the parent ends,
kill -9 included, is the order to stop: SIGTERM to the command's process group, SIGKILL to what is
left `_GRACE` seconds later. Should the guard itself be killed, the kernel ends the command (Linux).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

_GRACE = 10.0  # seconds
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> int:
    """The exit status of the command, 128 + the signal that ended it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone decides
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    child = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare
    )
    threading.Thread(target=_obey, args=[child.pid], daemon=True).start()
    status = child.wait()
    _signal(child.pid, signal.SIGKILL)  # what it started and left behind
    return status if status >= 0 else 128 - status


def _obey(group: int) -> None:
    """Wait for the end of the pipe, then end the group."""
    while os.read(0, 1024):
        pass
    _signal(group, signal.SIGTERM)
    time.sleep(_GRACE)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
