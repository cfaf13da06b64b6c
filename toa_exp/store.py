"""The store: every sample and every score that was ever made, in one SQLite file.

Rows are written once and never changed: the first write of a key wins, and a writer that lost is
given the winner's row. Several processes on one machine may share the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toa_exp.core import Usage
from toa_exp.draws import Draw, Sample, Score, ScoreKey, canonical, digest
from toa_exp.errors import StoreError

_APPLICATION = 0x544F4131  # "TOA1", in the file's header
_VERSION = 1
_WAIT = 60.0  # seconds to wait for another process's commit
_SCHEMA = """
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
# Keys are digests, spread over the whole index. With the problem's number in front, which grows as
# problems are first met, a commit touches few pages: a third of the time at 100,000 problems.
_GET_DRAW = (
    "SELECT text, prompt_tokens, completion_tokens, seconds, failure FROM draws WHERE problem = ? AND key = ?"
)
_PUT_DRAW = "INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_GET_SCORE = "SELECT reward, tokens, seconds FROM scores WHERE problem = ? AND key = ?"
_PUT_SCORE = "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_NUMBERS_KEPT = 10_000


@dataclass(slots=True)
class _Write:
    """A row on its way to the file; `earlier` becomes the row that is there, or None if it is this one."""

    statement: str
    values: tuple[Any, ...]
    earlier: asyncio.Future[tuple[Any, ...] | None]


class Store:
    """Draws and scores by key.

    Writes of one turn of the event loop are committed together, so a kill loses milliseconds of
    work. Raises StoreError where the file is damaged, foreign, locked for a minute, or the disk is
    full; such a file is never written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pending: list[_Write] = []
        self._numbers: dict[str, int] = {}
        self._turn = False
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
        try:
            with self._errors():
                self._open()
        except StoreError:
            self._db.close()
            raise

    def _open(self) -> None:
        database = self._db
        application, version, tables = self._state()
        if application == 0 and tables == 0:
            database.execute("BEGIN IMMEDIATE")
            if self._state() == (0, 0, 0):  # another process may have been first
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                database.execute(f"PRAGMA user_version = {_VERSION}")
            database.execute("COMMIT")
            application, version, tables = self._state()
        if application != _APPLICATION:
            raise StoreError(f"{self.path} is a database of something else; choose another store.path")
        if version != _VERSION:
            raise StoreError(
                f"{self.path} has store format {version}, this version of toa-exp reads {_VERSION}; "
                f"choose another store.path or install the version that wrote it"
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")

    def _state(self) -> tuple[int, int, int]:
        query = (
            "SELECT * FROM pragma_application_id, pragma_user_version, (SELECT count(*) FROM sqlite_master)"
        )
        application, version, tables = self._db.execute(query).fetchone()
        return application, version, tables

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.DatabaseError | OSError) -> StoreError:
        if isinstance(error, sqlite3.OperationalError | OSError):
            return StoreError(
                f"{self.path} cannot be used ({error}). Check that its folder exists and is writable, "
                f"that the disk has space and that no other program locks it"
            )
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError):
            return StoreError(f"{self.path} does not take a value that an engine or a reward gave ({error})")
        return StoreError(
            f"{self.path} is damaged or no store ({error}). It is left as it is: restore it from a "
            f"copy, salvage it with `sqlite3 {self.path} .recover`, or choose another store.path"
        )

    def register(self, fingerprint: Mapping[str, Any]) -> bytes:
        """Remember what an agent or a reward is; returns the digest that its rows carry."""
        text = canonical(fingerprint)
        key = digest(text)
        with self._errors():
            self._db.execute(
                "INSERT INTO fingerprints (digest, json) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (key, text.decode()),
            )
        return key

    async def get_draw(self, draw: Draw) -> Sample | None:
        """The sample that the store holds for a draw, or None."""
        row = self._row(_GET_DRAW, draw.problem.id, draw.key)
        return None if row is None else _sample(row)

    async def put_draw(self, draw: Draw, sample: Sample) -> Sample:
        """Store a sample; returns what the store then holds under the draw's key."""
        usage = sample.usage
        values = (
            self._number(draw.problem.id),
            draw.key,
            draw.agent,
            draw.prompt,
            draw.occurrence,
            draw.seed,
            sample.text,
            usage.prompt_tokens,
            usage.completion_tokens,
            sample.seconds,
            sample.failure,
        )
        row = await self._write(_PUT_DRAW, values)
        return sample if row is None else _sample(row)

    async def get_score(self, key: ScoreKey) -> Score | None:
        """The score stored under `key`, or None."""
        row = self._row(_GET_SCORE, key.problem, key.digest)
        return None if row is None else Score(*row)

    async def put_score(self, key: ScoreKey, score: Score) -> Score:
        """Store a score; returns what the store then holds under the key."""
        values = (self._number(key.problem), key.digest, key.content, key.reward, key.text)
        row = await self._write(_PUT_SCORE, (*values, score.reward, score.tokens, score.seconds))
        return score if row is None else Score(*row)

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one at a time."""
        with self._errors():
            yield from self._db.execute(query, values)

    def close(self) -> None:
        """Commit what is pending and close the file."""
        self._flush()
        with self._errors():
            self._db.close()

    def _row(self, query: str, problem: str, key: bytes) -> tuple[Any, ...] | None:
        number = self._numbers.get(problem) or self._number(problem)
        try:
            if not self._turn:
                self._begin_turn()
            row: tuple[Any, ...] | None = self._db.execute(query, (number, key)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error
        return row

    def _begin_turn(self) -> None:
        """Read from one snapshot until this turn of the loop ends, which halves the cost of a read."""
        asyncio.get_running_loop().call_soon(self._flush)
        self._db.execute("BEGIN")
        self._turn = True

    def _end_turn(self) -> None:
        if self._turn:
            self._turn = False
            self._db.execute("COMMIT")

    def _number(self, problem: str) -> int:
        """The number of a problem, given when it is first met."""
        number = self._numbers.get(problem)
        if number is None:
            with self._errors():
                self._end_turn()  # a snapshot that others have written past cannot be written to
                self._db.execute("INSERT INTO problems (id) VALUES (?) ON CONFLICT DO NOTHING", (problem,))
                row = self._db.execute("SELECT number FROM problems WHERE id = ?", (problem,)).fetchone()
            if len(self._numbers) >= _NUMBERS_KEPT:
                self._numbers.clear()
            number = self._numbers[problem] = int(row[0])
        return number

    def _write(self, statement: str, values: tuple[Any, ...]) -> asyncio.Future[tuple[Any, ...] | None]:
        """Put a row into the next commit; the result is the row that was there before, or None."""
        loop = asyncio.get_running_loop()
        if not self._pending:
            loop.call_soon(self._flush)
        write = _Write(statement, values, loop.create_future())
        self._pending.append(write)
        return write.earlier

    def _flush(self) -> None:
        batch, self._pending = self._pending, []
        try:
            with self._errors():
                self._end_turn()
                if not batch:
                    return
                self._db.execute("BEGIN IMMEDIATE")
                stored = [
                    row
                    for statement, select in ((_PUT_DRAW, _GET_DRAW), (_PUT_SCORE, _GET_SCORE))
                    for row in self._insert(statement, select, batch)
                ]
                self._db.execute("COMMIT")
        except Exception as error:  # whatever it is, those who wait must be told
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            for write in batch:
                if not write.earlier.done():
                    write.earlier.set_exception(error)
            return
        for write, row in stored:
            if not write.earlier.done():  # its trajectory may have been cancelled meanwhile
                write.earlier.set_result(row)

    def _insert(
        self, statement: str, select: str, batch: list[_Write]
    ) -> Iterator[tuple[_Write, tuple[Any, ...] | None]]:
        """Insert the rows of one table; with each, the row that the store holds if not all are new."""
        writes = [write for write in batch if write.statement is statement]
        new = self._db.executemany(statement, [write.values for write in writes]).rowcount
        for write in writes:
            known = new < len(writes)
            yield write, self._db.execute(select, write.values[:2]).fetchone() if known else None


def _sample(row: tuple[Any, ...]) -> Sample:
    text, prompt_tokens, completion_tokens, seconds, failure = row
    return Sample(text, Usage(prompt_tokens, completion_tokens), seconds, failure)
