"""A process that scores batches: started when it is first needed, and again after it ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from toa_exp.errors import BadInput, Unavailable

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
_SHOWN = 400  # characters of what a worker said
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

Row = Mapping[str, str]
"""What is scored: `src`, `mt` and, for a model that reads it, `ref`."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a model says of a row: score, tokens read, whether they fill its window, its share of seconds."""

    score: float
    tokens: int
    full: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to start a worker: interpreter and script, and what the script is told.

    `startup` and `timeout` are the seconds that it has to load the model and to score a batch.
    """

    whose: str
    python: Path
    spec: Mapping[str, Any]
    startup: float
    timeout: float
    script: Path = WORKER


class Worker:
    """One process. It ends with this one however that ends, since its standard input ends too.

    `ask` is called from one thread at a time.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._numbers = itertools.count()
        self._ended_for_good = False

    def ask(self, rows: Sequence[Row]) -> list[Sentence]:
        """The scores of rows, in their order, NaN among them where the model gives it.

        Raises BadInput where the model cannot be loaded, and Unavailable where the worker ends, is
        silent for too long, or answers what is no answer; it is then started again for the next rows.
        """
        if self._ended_for_good:
            raise Unavailable(f"{self._recipe.whose}: the COMET worker was ended")
        if self._process is None:
            self._start()
        number = next(self._numbers)
        started = time.perf_counter()
        answer = self._exchange({"id": number, "rows": list(rows)}, self._recipe.timeout)
        seconds = (time.perf_counter() - started) / len(rows)
        whose = self._recipe.whose
        if answer.get("error") == "memory":
            raise Unavailable(
                f"{whose}: {self._recipe.spec['device']} is out of memory with {len(rows)} sentences; "
                f"lower {whose}.max_batch"
            )
        if "error" in answer:
            raise Unavailable(f"{whose}: COMET failed on {len(rows)} sentences: {answer.get('message')}")
        sentences = _sentences(answer, number, len(rows), seconds)
        if sentences is None:
            raise self._nonsense(json.dumps(answer))
        return sentences

    def end(self) -> None:
        """End the process for good; from another thread, so that an `ask` at work raises."""
        self._ended_for_good = True
        _kill(self._process)

    def close(self) -> None:
        """Clear the process away, if there is one; `ask` starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        process.wait()
        for stream in (process.stdin, process.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _start(self) -> None:
        recipe = self._recipe
        log.info("%s: loading %s", recipe.whose, recipe.spec["checkpoint"])
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(recipe.python), "-I", str(recipe.script), json.dumps(recipe.spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **_OFFLINE},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )
        if self._ended_for_good:  # by now
            _kill(self._process)
        ready = self._exchange(None, recipe.startup)
        if "fatal" in ready:
            self.close()
            raise BadInput(
                f"{recipe.whose}: COMET cannot run {recipe.spec['checkpoint']} on {recipe.spec['device']} "
                f"({str(ready['fatal'])[:_SHOWN]}). Check {recipe.whose}.model, and {recipe.whose}.encoder"
            )
        if "ready" not in ready:
            raise self._nonsense(json.dumps(ready))

    def _exchange(self, request: Mapping[str, Any] | None, limit: float) -> dict[str, Any]:
        """Send a request, where there is one, and read a line within `limit` seconds."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if late.is_set():
            self.close()
            raise Unavailable(
                f"{self._recipe.whose}: the COMET worker did not answer within {limit:g} s and was ended; "
                f"{self._recipe.whose}.timeout gives it longer, a lower max_batch less to do"
            )
        if not line.endswith(b"\n"):
            raise self._ended(process)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._nonsense(line.decode(errors="replace"))
        return answer

    def _ended(self, process: subprocess.Popen[bytes]) -> Unavailable:
        """The error for a process that is no more, with the last that it said."""
        said = ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10.0)  # its output has ended, so that it has or is about to
        if self._said is not None:
            self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _SHOWN))
            said = " ".join(self._said.read().decode(errors="replace").split())
        status = process.returncode
        self.close()
        how = f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
        memory = "; for want of memory, lower max_batch or take a smaller model" if status == -9 else ""
        return Unavailable(f"{self._recipe.whose}: the COMET worker {how}{memory}. It said last: {said!r}")

    def _nonsense(self, answer: str) -> Unavailable:
        self.close()
        return Unavailable(
            f"{self._recipe.whose}: the COMET worker answered what is no answer: {answer[:_SHOWN]!r}"
        )


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """It has nothing to lose, and is the leader of its own group."""
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _sentences(answer: Mapping[str, Any], number: int, rows: int, seconds: float) -> list[Sentence] | None:
    """The sentences of an answer; None for what does not answer request `number` of so many rows."""
    columns = [answer.get(name) for name in ("scores", "tokens", "full")]
    if answer.get("id") != number or not all(isinstance(c, list) and len(c) == rows for c in columns):
        return None
    found = []
    for score, tokens, full in zip(*columns, strict=True):
        if not isinstance(score, float) or type(tokens) is not int or tokens < 0 or type(full) is not bool:
            return None
        found.append(Sentence(score, tokens, full, seconds))
    return found
