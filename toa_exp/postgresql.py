"""The store on a PostgreSQL server, which several machines may share.

Rows are those of the SQLite store. Texts are kept as their UTF-8 bytes, since PostgreSQL's own text
takes no zero character. How the database is reached and set up is in `toa_exp.database`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from toa_exp.database import Database
from toa_exp.draws import Draw, Sample, Score, ScoreKey, decode, encode
from toa_exp.storage import Storage
from toa_exp.tables import DRAWS, SCORES, Table

if TYPE_CHECKING:
    import psycopg

_MOST = 1000  # rows written in one transaction
_FETCHED = 1000  # rows that a query gives at a time
Value = TypeVar("Value")
_Identity = tuple[bytes, bytes]
"""The id of a problem and the key of a row."""


@dataclass(slots=True)
class _Get:
    """A row that is looked for."""

    table: Table[Any]
    identity: _Identity
    done: asyncio.Future[Any]


@dataclass(slots=True)
class _Put(_Get):
    """A row on its way: its columns from the key on, and the value that they say."""

    values: tuple[Any, ...]
    value: Any


class PostgreSQL(Storage):
    """Draws and scores by key, in the PostgreSQL database that `url` names.

    What is asked for while the server is at work goes to it together, in one transaction and one
    round trip. A server that goes away is waited for a minute. A `patient` store also waits for one
    that is not there at the start. Raises StoreError as `Database` does.
    """

    KIND: ClassVar[str] = "database"
    ENTRY: ClassVar[str] = "draws.entry"

    def __init__(self, url: str, *, patient: bool = False) -> None:
        self._database = Database(url, patient=patient)
        self.name = self._database.name
        self._thread = ThreadPoolExecutor(1, "store")
        self._gets: list[_Get] = []
        self._puts: list[_Put] = []
        self._at_work = False
        self._reader: psycopg.Connection[Any] | None = None
        self._cursors = itertools.count()

    async def get_draw(self, draw: Draw) -> Sample | None:
        """The sample that the store holds for a draw, or None."""
        return await self._get(DRAWS, draw.problem.id, draw.key)

    async def get_score(self, key: ScoreKey) -> Score | None:
        """The score stored under `key`, or None."""
        return await self._get(SCORES, key.problem, key.digest)

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one at a time; texts are bytes."""
        import psycopg

        try:
            if self._reader is None:
                self._reader = self._database.connect()
            name = f"rows{next(self._cursors)}"
            with self._reader.transaction(), self._reader.cursor(name) as cursor:
                cursor.itersize = _FETCHED
                yield from cursor.execute(query.replace("?", "%s"), values)
        except psycopg.Error as error:
            raise self._database.explain(error) from None

    def size(self) -> int:
        """Bytes of the tables and their indices."""
        tables = "'{problems,draws,scores,fingerprints}'::regclass[]"
        ((size,),) = self.rows(f"SELECT sum(pg_total_relation_size(one)) FROM unnest({tables}) AS one")
        return int(size)

    def faults(self) -> Iterator[str]:
        """None: the server checks its own pages, where it was set up to."""
        return iter(())

    def close(self) -> None:
        """Commit what is pending and close the connections."""
        self._thread.shutdown()
        puts, self._puts = self._puts, []
        try:
            if puts:
                self._database.transact(partial(_exchange, puts, []))
        finally:
            self._database.close()
            if self._reader is not None:
                self._reader.close()

    def _register(self, key: bytes, text: str) -> None:
        query = "INSERT INTO fingerprints VALUES (%s, %s) ON CONFLICT DO NOTHING"
        self._database.transact(lambda connection: connection.execute(query, (key, text)))

    def _get(self, table: Table[Value], problem: str, key: bytes) -> asyncio.Future[Value | None]:
        get = _Get(table, (encode(problem), key), self._wake().create_future())
        self._gets.append(get)
        return get.done

    def _put(
        self, table: Table[Value], problem: str, key: bytes, values: tuple[Any, ...], value: Value
    ) -> asyncio.Future[Value]:
        put = _Put(table, (encode(problem), key), self._wake().create_future(), values, value)
        self._puts.append(put)
        return put.done

    def _wake(self) -> asyncio.AbstractEventLoop:
        """See to it that what is asked for in this turn of the loop is sent at its end."""
        loop = asyncio.get_running_loop()
        if not self._at_work:
            self._at_work = True
            loop.call_soon(self._send)
        return loop

    def _send(self) -> None:
        """Give the thread what was asked for since it was last given something."""
        gets, self._gets = self._gets, []
        puts, self._puts = self._puts[:_MOST], self._puts[_MOST:]
        self._at_work = bool(gets or puts)
        if self._at_work:
            work = partial(_exchange, puts, gets)
            exchange = asyncio.get_running_loop().run_in_executor(self._thread, self._database.transact, work)
            exchange.add_done_callback(partial(self._deliver, [*puts, *gets]))

    def _deliver(self, asked: Sequence[_Get], exchange: asyncio.Future[list[Any]]) -> None:
        """Tell those who wait, in the order they asked, and go on."""
        error = exchange.exception()
        values = [None] * len(asked) if error is not None else exchange.result()
        for one, value in zip(asked, values, strict=True):
            if one.done.done():  # its trajectory may have been cancelled meanwhile
                continue
            if error is not None:
                one.done.set_exception(error)
            else:
                one.done.set_result(value)
        self._send()


def _exchange(puts: Sequence[_Put], gets: Sequence[_Get], connection: psycopg.Connection[Any]) -> list[Any]:
    """Write and read in one transaction; what the store then holds of each row, None for no row.

    Reads come last: what is on its way to the store is never said to be missing, and drawn again.
    """
    tables = [_Rows(table, puts, gets) for table in (DRAWS, SCORES)]
    problems = sorted({put.identity[0] for put in puts})
    with connection.pipeline(), connection.transaction():
        if problems:
            connection.execute(_NUMBER, (problems,))
        for rows in tables:
            rows.write(connection)
        for rows in tables:
            rows.read(connection, rows.wanted)
    lost = [rows for rows in tables if rows.collect()]
    for rows in lost:  # whoever was first has committed, or the insertion would have waited for it
        rows.read(connection, rows.held)
        rows.collect()
    held = {rows.table: rows.held for rows in tables}
    return [held[one.table].get(one.identity) for one in (*puts, *gets)]


class _Rows:
    """The rows of one table in one exchange; `held` are the values that the store holds."""

    def __init__(self, table: Table[Any], puts: Sequence[_Put], gets: Sequence[_Get]) -> None:
        self.table = table
        self.puts: dict[_Identity, _Put] = {}
        for put in puts:
            if put.table is table:
                self.puts.setdefault(put.identity, put)
        self.held = {identity: put.value for identity, put in self.puts.items()}
        self.wanted = {get.identity for get in gets if get.table is table} - self.held.keys()
        self._written: psycopg.Cursor[Any] | None = None
        self._read: psycopg.Cursor[Any] | None = None

    def write(self, connection: psycopg.Connection[Any]) -> None:
        """Insert in the order of the keys, so that no two writers wait for each other in a circle."""
        identities = sorted(self.puts)
        if not identities:
            return
        rows = zip(*(self.puts[identity].values for identity in identities), strict=True)
        columns: list[Any] = [[problem for problem, _ in identities]]
        for values, kind in zip(rows, _COLUMNS[self.table].values(), strict=True):
            texts = kind == "bytea" and isinstance(values[0], str)
            columns.append([encode(value) for value in values] if texts else list(values))
        self._written = connection.execute(_PUT[self.table], columns)

    def read(self, connection: psycopg.Connection[Any], identities: Collection[_Identity]) -> None:
        """Look rows up."""
        if identities:
            problems, keys = zip(*identities, strict=True)
            self._read = connection.cursor(binary=True)
            self._read.execute(_GET[self.table], (list(problems), list(keys)))

    def collect(self) -> bool:
        """Take in what was found; whether others were first with a row that was to be inserted."""
        if self._read is not None:
            for problem, key, *row in self._read:
                columns = (decode(value) if isinstance(value, bytes) else value for value in row)
                self.held[problem, key] = self.table.read(*columns)
        return self._written is not None and self._written.rowcount < len(self.puts)


# The columns of the tables from the key on, in the order of the values that are put.
_COLUMNS: Mapping[Table[Any], Mapping[str, str]] = {
    DRAWS: {
        "key": "bytea",
        "agent": "bytea",
        "prompt": "bytea",
        "occurrence": "bigint",
        "seed": "bigint",
        "text": "bytea",
        "prompt_tokens": "bigint",
        "completion_tokens": "bigint",
        "seconds": "double precision",
        "failure": "text",
    },
    SCORES: {
        "key": "bytea",
        "content": "bytea",
        "reward_model": "bytea",
        "text": "bytea",
        "reward": "double precision",
        "tokens": "bigint",
        "seconds": "double precision",
    },
}

# Rows travel as arrays, one a column, so that any number of them is one statement.
_NUMBER = """
INSERT INTO problems (id) SELECT id FROM unnest(%b::bytea[]) AS asked (id)
WHERE NOT EXISTS (SELECT FROM problems WHERE problems.id = asked.id) ON CONFLICT DO NOTHING
"""


def _put(name: str, columns: Mapping[str, str]) -> str:
    names = ", ".join(columns)
    arrays = ", ".join(f"%b::{kind}[]" for kind in ("bytea", *columns.values()))
    given = ", ".join(f"asked.{column}" for column in columns)
    return (
        f"INSERT INTO {name} (problem, {names}) SELECT number, {given} "
        f"FROM unnest({arrays}) AS asked (id, {names}) JOIN problems ON problems.id = asked.id "
        f"ON CONFLICT DO NOTHING"
    )


def _get(name: str, columns: str) -> str:
    return (
        f"SELECT asked.id, asked.key, {columns} FROM unnest(%b::bytea[], %b::bytea[]) AS asked (id, key) "
        f"JOIN problems ON problems.id = asked.id JOIN {name} ON problem = number AND {name}.key = asked.key"
    )


_PUT = {table: _put(name, _COLUMNS[table]) for table, name in ((DRAWS, "draws"), (SCORES, "scores"))}
_GET = {
    DRAWS: _get("draws", "text, prompt_tokens, completion_tokens, seconds, failure"),
    SCORES: _get("scores", "reward, tokens, seconds"),
}
