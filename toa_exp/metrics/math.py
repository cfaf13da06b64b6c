"""Equality of mathematical answers by Math-Verify, in a process of its own under a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import re
import signal
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toa_exp.errors import Unavailable, missing_extra
from toa_exp.metrics.answers import final_answer

log = logging.getLogger(__name__)
_REMEMBERED = 10_000
_START = 120.0  # seconds for the worker to import its libraries
_LINE_LIMIT = 1 << 26
_PATIENCE = 30  # times the limit of processor time, on a loaded machine
_END = 10.0  # seconds for a worker that has closed its output to be gone
_DELIMITERS = re.compile(r"\$|(?<!\\)\\[(\[]|\\boxed")  # \\[2pt] is the end of a row
_MARKS = ("$", r"\(", r"\[", r"\boxed")
_AMOUNT = re.compile(r"\\\$")
_UNDECIDED = 2  # comparisons of an answer, after which it is compared with no more
_PROSE = re.compile(r"(?<![\\\w])[^\W\d_][^\W\d_']+\s+[^\W\d_][^\W\d_']+")  # two words


# Math-Verify's parser is complete only with this version of ANTLR, and Hydra needs another. The worker
# is a process of its own, so it can have its own copy: `make install` puts one here.
_ANTLR = Path(sys.prefix) / "share" / "toa-exp" / "antlr4"
_INSTALL = f"pip install --no-deps --target {_ANTLR} antlr4-python3-runtime==4.13.2"


class MathVerify:
    """Judge: Math-Verify finds the text's final answer equal to the reference.

    A reference without math delimiters is read as if it stood in $...$, and so is the final answer
    of a text without them. An answer that takes more than `timeout` seconds of processor time or
    the worker's memory to verify has no verdict and is logged. `workers` run side by
    side. Raises Unavailable where they cannot be started.
    Source: https://github.com/huggingface/Math-Verify.
    """

    def __init__(self, *, timeout: float = 5.0, workers: int = 1) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise missing_extra("math-verify", "math")
        if not _ANTLR.is_dir():
            log.warning("Math-Verify misreads some LaTeX, such as percentages, until you run: %s", _INSTALL)
        self._timeout = timeout
        self._size = workers
        self._idle: asyncio.Queue[_Worker] | None = None
        self._known: OrderedDict[tuple[str, ...], bool | str | None] = OrderedDict()

    def fingerprint(self) -> Mapping[str, Any]:
        """The versions of Math-Verify and of ANTLR, and the time limit."""
        antlr = "4.13.2" if _ANTLR.is_dir() else version("antlr4-python3-runtime")
        versions = {"version": version("math-verify"), "antlr": antlr}
        return {"judge": "math-verify", **versions, "timeout": self._timeout}

    async def correct(self, reference: str, text: str) -> bool | None:
        """Whether the final answer of `text` equals the reference; None if that was not verified.

        The dollar sign of an amount, \\$18.90, and the end of a matrix's row, \\\\[2pt], delimit nothing.
        """
        return await self._verified(_delimited(reference), _delimited(_stated(text)))

    async def equal(self, reference: str, answer: str) -> bool | None:
        """Whether the answers are equal, each read as it stands; None if that was not verified.

        What has $, \\(, \\[ or \\boxed anywhere has delimiters, as in published decisions.
        """
        return await self._verified(_wrapped(reference), _wrapped(answer))

    async def _verified(self, reference: str, answer: str) -> bool | None:
        verdict = await self._asked((reference, answer))
        return None if verdict is None else bool(verdict)

    async def ballots(self, texts: Sequence[str]) -> list[str | None]:
        """The final answers of texts, those that Math-Verify finds equal as the same string.

        Texts are read as by `correct`. None is a text without an answer, prose, or one whose answer
        cannot be read within the limits.
        """
        stated = [_stated(text) for text in texts]
        found = [None if _is_prose(one) else await self._asked((_delimited(one),)) for one in stated]
        written = [str(one) if one else None for one in found]
        first: dict[str, str] = {}
        for one, text in zip(written, stated, strict=True):
            if one is not None:
                first.setdefault(one, text)
        same = await self._groups(first)
        return [None if one is None else same[one] for one in written]

    async def _groups(self, answers: Mapping[str, str]) -> dict[str, str]:
        """By each answer the first one that is equal; `answers` are texts to read it in."""
        same: dict[str, str] = {}
        undecided: Counter[str] = Counter()
        for answer, text in answers.items():
            same[answer] = answer
            for other in [other for other, head in same.items() if other == head != answer]:
                if max(undecided[answer], undecided[other]) >= _UNDECIDED:
                    continue
                alike = await self._alike(answers[other], text)
                if alike:
                    same[answer] = other
                    break
                undecided.update([answer, other] if alike is None else [])
        return same

    async def _alike(self, first: str, second: str) -> bool | None:
        """Whether either is right where the other is the reference, which it may be in one order alone."""
        first, second = _delimited(first), _delimited(second)
        return await self._verified(first, second) or await self._verified(second, first)

    async def _asked(self, key: tuple[str, ...]) -> bool | str | None:
        """What the worker says of texts."""
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if self._idle is None:
            self._idle = asyncio.Queue()
            for _ in range(self._size):
                self._idle.put_nowait(_Worker(self._timeout))
        worker = await self._idle.get()
        try:
            verdict = await worker.ask(key)
        finally:
            self._idle.put_nowait(worker)
        self._known[key] = verdict
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return verdict

    async def close(self) -> None:
        """Stop the workers."""
        while self._idle is not None and not self._idle.empty():
            await self._idle.get_nowait().stop()


def _is_delimited(text: str) -> bool:
    return _DELIMITERS.search(_AMOUNT.sub("", text)) is not None


def _stated(text: str) -> str:
    """What of a text Math-Verify reads the answer in."""
    return text if _is_delimited(text) else final_answer(text) or text


def _is_prose(stated: str) -> bool:
    """Whether no answer is marked in any way in words."""
    return not _is_delimited(stated) and _PROSE.search(stated) is not None


def _delimited(answer: str) -> str:
    return answer if _is_delimited(answer) else f"${answer}$"


def _wrapped(answer: str) -> str:
    return answer if any(mark in answer for mark in _MARKS) else f"${answer}$"


class _Worker:
    """A process that verifies one answer at a time; see `toa_exp.metrics.math_worker`."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, texts: Sequence[str]) -> bool | str | None:
        """What the worker says of texts; None for those over the limits, or that end two workers."""
        for _ in range(2):
            process = self._process or await self._start()
            line = await self._line(process, json.dumps(texts).encode() + b"\n")
            if line:
                verdict: bool | str | None = json.loads(line)
                if verdict is None:
                    break
                return verdict
            with contextlib.suppress(TimeoutError):  # its status tells why it ended
                await asyncio.wait_for(process.wait(), _END)
            await self.stop()
            if process.returncode == -signal.SIGXCPU:
                break
        log.warning("not verified within %g s and the worker's memory: %.80r", self._timeout, texts[-1])
        return None

    async def _line(self, process: asyncio.subprocess.Process, request: bytes) -> bytes:
        """The worker's answer, empty if it ended."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            return await asyncio.wait_for(process.stdout.readline(), _PATIENCE * self._timeout)
        except ConnectionError:
            return b""
        except TimeoutError as error:
            await self.stop()
            raise Unavailable("the math-verify worker does not answer") from error
        except asyncio.CancelledError:
            await self.stop()  # its answer would be taken for the next one's
            raise

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a file of the user's own may be named like a library's
            "-m",
            "toa_exp.metrics.math_worker",
            str(self._timeout),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ANTLR), *sys.path])},
        )
        assert process.stdout is not None
        try:
            ready = await asyncio.wait_for(process.stdout.readline(), _START)
        except TimeoutError:
            ready = b""
        if ready != b"ready\n":
            await self.stop()
            raise Unavailable("the math-verify worker did not start; its error is printed above")
        return process

    async def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    # process.kill() would reap a process that has just ended before asyncio does, which
                    # then loses its status and warns.
                    os.kill(process.pid, signal.SIGKILL)
            await process.wait()
