"""The tables of the store's file, and how their rows are written and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from toa_exp.core import Usage
from toa_exp.draws import Sample, Score

APPLICATION = 0x544F4131
"""What the file's header says it is: "TOA1"."""

VERSION = 1
"""The version of SCHEMA."""

SCHEMA = """
CREATE TABLE fingerprints (digest BLOB NOT NULL PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE problems (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE draws (
    problem INTEGER NOT NULL, key BLOB NOT NULL, agent BLOB NOT NULL, prompt BLOB NOT NULL,
    occurrence INTEGER NOT NULL, seed INTEGER NOT NULL, text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    failure TEXT, UNIQUE (problem, key));
CREATE TABLE scores (
    problem INTEGER NOT NULL, key BLOB NOT NULL, content BLOB NOT NULL, reward_model BLOB NOT NULL,
    text BLOB NOT NULL, reward REAL NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (problem, key)) WITHOUT ROWID
"""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Table(Generic[Value]):
    """A table keyed by problem and digest.

    `get` selects by both, and `read` makes a value of the columns that it gives. `put` takes all
    columns, and leaves a row that is there as it is.
    """

    get: str
    put: str
    read: Callable[..., Value]


def _sample(
    text: str, prompt_tokens: int, completion_tokens: int, seconds: float, failure: str | None
) -> Sample:
    return Sample(text, Usage(prompt_tokens, completion_tokens), seconds, failure)


# Keys are digests, spread over the whole index. With the problem's number in front, which grows as
# problems are first met, a commit touches few pages: a third of the time at 100,000 problems.
DRAWS = Table(
    "SELECT text, prompt_tokens, completion_tokens, seconds, failure"
    " FROM draws WHERE problem = ? AND key = ?",
    "INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    _sample,
)
SCORES = Table(
    "SELECT reward, tokens, seconds FROM scores WHERE problem = ? AND key = ?",
    "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    Score,
)
