"""The worker of `toa_exp.metrics.math`: one JSON pair a line in, true or false a line out."""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from typing import TextIO

_MEMORY = 4 << 30  # bytes; a hostile expression must not take the machine down


def main(requests: TextIO, answers: TextIO) -> None:
    """Serve until the input ends. The time limit is the parent's, which kills this process."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that there is no time limit
    answers.write("ready\n")
    answers.flush()
    for line in requests:
        reference, text = json.loads(line)
        gold = parse(reference, parsing_timeout=None)
        equal = bool(gold) and verify(gold, parse(text, parsing_timeout=None), timeout_seconds=None)
        answers.write(json.dumps(bool(equal)) + "\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    main(sys.stdin, sys.stdout)
