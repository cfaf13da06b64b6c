"""The store: every sample and every score that was ever made, in one SQLite file.

Rows are written once and never changed: the first write of a key wins, and a writer that lost is
given the winner's row. Several processes on one machine may share the file; what several machines
may share is in `toa_exp.postgresql`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from toa_exp.draws import Draw, Sample, Score, ScoreKey
from toa_exp.errors import StoreError
from toa_exp.storage import Storage
from toa_exp.tables import APPLICATION, DRAWS, SCHEMA, SCORES, VERSION, Table

_WAIT = 60.0  # seconds to wait for another process's commit
_PROBLEMS_KEPT = 512  # in memory; what is known of others is looked up again
Value = TypeVar("Value")


@dataclass(slots=True)
class _Known:
    """What this process knows of a problem.

    `number` is that in the file, None until its first row is written. `keys` are those of all its
    rows, as long as they are this process's own: then what is not among them need not be looked for.
    """

    problem: str
    number: int | None
    keys: set[bytes] | None


@dataclass(slots=True)
class _Write:
    """A row on its way to the file.

    `values` are its columns from the key on and `value` what they say, until the file turns out to
    say otherwise. `stored` is done with it once it is committed.
    """

    table: Table[Any]
    known: _Known
    values: tuple[Any, ...]
    value: Any
    stored: asyncio.Future[Any]


class Store(Storage):
    """Draws and scores by key, in a file.

    Writes of one turn of the event loop are committed together, so a kill loses milliseconds of
    work. Raises StoreError where the file is damaged, foreign, locked for a minute, or the disk is
    full; such a file is never written to.
    """

    KIND: ClassVar[str] = "file"
    ENTRY: ClassVar[str] = "draws.rowid"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._pending: list[_Write] = []
        self._problems: dict[str, _Known] = {}
        self._version = 0  # of the data: others' commits change it
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
                for statement in SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION}")
                database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("COMMIT")
            application, version, tables = self._state()
        if application != APPLICATION:
            raise StoreError(f"{self.path} is a database of something else; choose another store.path")
        if version != VERSION:
            raise StoreError(
                f"{self.path} has store format {version}, this version of toa-exp reads {VERSION}; "
                f"choose another store.path or install the version that wrote it"
            )
        self._write_ahead()
        database.execute("PRAGMA synchronous = NORMAL")

    def _write_ahead(self) -> None:
        """Change the journal's mode; unlike all else, SQLite does not wait for other processes there."""
        end = time.monotonic() + _WAIT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

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

    async def get_draw(self, draw: Draw) -> Sample | None:
        """The sample that the store holds for a draw, or None."""
        return self._get(DRAWS, draw.problem.id, draw.key)

    async def get_score(self, key: ScoreKey) -> Score | None:
        """The score stored under `key`, or None."""
        return self._get(SCORES, key.problem, key.digest)

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one at a time."""
        with self._errors():
            yield from self._db.execute(query, values)

    def size(self) -> int:
        """Bytes of the file."""
        ((size,),) = self.rows("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return int(size)

    def faults(self) -> Iterator[str]:
        """What SQLite finds wrong with the file."""
        return (row[0] for row in self.rows("PRAGMA integrity_check") if row[0] != "ok")

    def close(self) -> None:
        """Commit what is pending and close the file."""
        self._flush()
        with self._errors():
            self._db.close()

    def _register(self, key: bytes, text: str) -> None:
        with self._errors():
            self._db.execute(
                "INSERT INTO fingerprints (digest, json) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, text)
            )

    def _get(self, table: Table[Value], problem: str, key: bytes) -> Value | None:
        try:
            if not self._turn:
                self._begin_turn()
            known = self._problems.get(problem) or self._meet(problem)
            if known.keys is not None and key not in known.keys:
                return None
            row = self._db.execute(table.get, (known.number, key)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error
        return None if row is None else table.read(*row)

    def _begin_turn(self) -> None:
        """Read from one snapshot until this turn of the loop ends, which halves the cost of a read."""
        asyncio.get_running_loop().call_soon(self._flush)
        self._db.execute("BEGIN")
        self._turn = True
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version
            # Others may have added rows to any problem, and numbered those that had no number.
            self._problems = {
                problem: _Known(problem, known.number, None)
                for problem, known in self._problems.items()
                if known.number is not None
            }

    def _end_turn(self) -> None:
        if self._turn:
            self._turn = False
            self._db.execute("COMMIT")

    def _meet(self, problem: str) -> _Known:
        """Look a problem up; one that the file does not have has no rows."""
        with self._errors():
            row = self._db.execute("SELECT number FROM problems WHERE id = ?", (problem,)).fetchone()
        known = _Known(problem, None, set()) if row is None else _Known(problem, row[0], None)
        self._problems[problem] = known
        return known

    def _put(
        self, table: Table[Value], problem: str, key: bytes, values: tuple[Any, ...], value: Value
    ) -> asyncio.Future[Value]:
        loop = asyncio.get_running_loop()
        if not self._pending:
            loop.call_soon(self._flush)
        known = self._problems.get(problem) or self._meet(problem)
        if known.keys is not None:
            known.keys.add(key)
        write = _Write(table, known, values, value, loop.create_future())
        self._pending.append(write)
        return write.stored

    def _flush(self) -> None:
        """End the turn: commit all writes of it, and tell those who wait for them."""
        batch, self._pending = self._pending, []
        try:
            with self._errors():
                self._end_turn()
                if not batch:
                    return
                self._db.execute("BEGIN IMMEDIATE")
                self._insert(DRAWS, batch)
                self._insert(SCORES, batch)
                self._db.execute("COMMIT")
        except Exception as error:  # whatever it is, those who wait must be told
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._problems.clear()  # numbers given in this transaction are void
            for write in batch:
                if not write.stored.done():
                    write.stored.set_exception(error)
            return
        for write in batch:
            if not write.stored.done():  # its trajectory may have been cancelled meanwhile
                write.stored.set_result(write.value)
        while len(self._problems) > _PROBLEMS_KEPT:
            del self._problems[next(iter(self._problems))]

    def _insert(self, table: Table[Any], batch: list[_Write]) -> None:
        """Insert the rows of one table."""
        writes = [write for write in batch if write.table is table]
        rows = [(write.known.number or self._number(write.known), *write.values) for write in writes]
        if self._db.executemany(table.put, rows).rowcount == len(rows):
            return
        for write, row in zip(writes, rows, strict=True):  # some were there
            write.value = table.read(*self._db.execute(table.get, row[:2]).fetchone())

    def _number(self, known: _Known) -> int:
        """Give a problem its number."""
        self._db.execute("INSERT INTO problems (id) VALUES (?) ON CONFLICT DO NOTHING", (known.problem,))
        row = self._db.execute("SELECT number FROM problems WHERE id = ?", (known.problem,)).fetchone()
        known.number = number = int(row[0])
        return number
