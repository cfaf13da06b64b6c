"""The worker of `toa_exp.metrics.math`: one JSON list a line in, an answer a line out.

To a reference and an answer it is whether they are equal, to one text the final answer in it as
Math-Verify finds it, empty where it finds none.
Null is the answer to what takes more memory or recursion than there is.
It ends by SIGXCPU where an answer takes more processor time than the limit, its only argument.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
import sys
import time
from typing import TextIO

_MEMORY = 4 << 30  # bytes; a hostile expression must not take the machine down


def main(requests: TextIO, answers: TextIO, limit: float) -> None:
    """Serve until the input ends."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that there is no time limit
    answers.write("ready\n")
    answers.flush()
    for line in requests:
        until = math.ceil(time.process_time() + limit)
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        answer: bool | str | None
        try:
            found = [parse(text, parsing_timeout=None) for text in json.loads(line)]
            if len(found) == 1:
                answer = str(found[0][-1]) if found[0] else ""
            else:
                gold, given = found
                answer = bool(gold) and bool(verify(gold, given, timeout_seconds=None))
        except (MemoryError, RecursionError):
            answer = None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    main(sys.stdin, sys.stdout, float(sys.argv[1]))
