"""A PostgreSQL database that holds a store: reached, set up on first use, waited for, and explained."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from toa_exp.errors import BadInput, StoreError, missing_extra
from toa_exp.redact import split_password
from toa_exp.tables import APPLICATION, VERSION

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds to wait for a server that went away
_PAUSE = 0.5  # seconds between two attempts to reach it
_REACH = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "tcp_user_timeout": 60_000,
    "application_name": "toa-exp",
}
# Rows are looked up by arrays of keys: each one in the index, whatever the planner knows of the table.
_SETTINGS = "; ".join(
    f"SET {setting}"
    for setting in (
        "enable_seqscan = off",
        "enable_hashjoin = off",
        "enable_mergejoin = off",
        "jit = off",
    )
)
_SCHEMA = """
CREATE TABLE toa_exp (version bigint NOT NULL);
CREATE TABLE fingerprints (digest bytea PRIMARY KEY, json text NOT NULL);
CREATE TABLE problems (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id bytea NOT NULL UNIQUE);
CREATE TABLE draws (
    problem bigint NOT NULL, key bytea NOT NULL, agent bytea NOT NULL, prompt bytea NOT NULL,
    occurrence bigint NOT NULL, seed bigint NOT NULL, text bytea NOT NULL,
    prompt_tokens bigint NOT NULL, completion_tokens bigint NOT NULL, seconds double precision NOT NULL,
    failure text, entry bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (problem, key));
CREATE TABLE scores (
    problem bigint NOT NULL, key bytea NOT NULL, content bytea NOT NULL, reward_model bytea NOT NULL,
    text bytea NOT NULL, reward double precision NOT NULL, tokens bigint NOT NULL,
    seconds double precision NOT NULL, PRIMARY KEY (problem, key))
"""
_TABLES = ["toa_exp", "fingerprints", "problems", "draws", "scores"]
Result = TypeVar("Result")


class Database:
    """A connection that mends itself, to tables that are there.

    A `patient` one also waits for a server that is not there at the start. `name` is the URL without
    its password. Raises StoreError for a server that cannot be reached or used, or whose tables are
    another program's or of another format.
    """

    def __init__(self, url: str, *, patient: bool = False) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise missing_extra("psycopg", "postgresql") from error
        self.name, _ = split_password(url)
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # its message may hold parts of a password
            raise BadInput(
                f"store.path={self.name} is no PostgreSQL URL; one reads "
                f"postgresql://user@host:5432/database, special characters as %XX. A password is better in "
                f"PGPASSWORD or ~/.pgpass"
            ) from None
        self._reach: dict[str, Any] = {**_REACH, **given}
        self._patient = patient
        self._connection: psycopg.Connection[Any] | None = None
        try:
            self.transact(_set_up)
        except BaseException:
            self.close()
            raise

    def connect(self) -> psycopg.Connection[Any]:
        """A further connection, in autocommit mode."""
        import psycopg

        return psycopg.connect(**self._reach, client_encoding="UTF8", autocommit=True)

    def transact(self, work: Callable[[psycopg.Connection[Any]], Result]) -> Result:
        """The result of `work`, which is called again from its start where the server went away.

        It must therefore give the same when part or all of it was already done.
        """
        import psycopg

        deadline = None
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self.connect()
                    self._connection.execute(_SETTINGS)
                result = work(self._connection)
                self._patient = True  # a server that was there comes back
                return result
            except psycopg.Error as error:
                if not self._may_pass(error) or (deadline and time.monotonic() > deadline):
                    self._patient = False  # what else is on its way does not wait once more
                    raise self.explain(error) from None
                if deadline is None:
                    deadline = time.monotonic() + _PATIENCE
                    log.warning("%s: %s; trying for %.0f s", self.name, _line(error), _PATIENCE)
                self.close()  # what state it is in is not known
                time.sleep(_PAUSE)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _may_pass(self, error: psycopg.Error) -> bool:
        import psycopg

        if isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
            return True
        if not self._patient or not isinstance(error, psycopg.OperationalError):
            return False
        # What the server says has a state; of a connection that breaks libpq may tell what it was doing.
        return error.sqlstate is None or self._connection is None or bool(self._connection.closed)

    def explain(self, error: psycopg.Error) -> StoreError:
        """What to tell the user of an error."""
        import psycopg

        what = f"{self.name} cannot be used ({_line(error)})"
        if isinstance(error, psycopg.errors.DiskFull):
            return StoreError(f"{what}. The disk of its server is full; free space there and run again")
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return StoreError(
                f"{what}. Let its owner make the database for you (createdb --owner=<you> <name>), or "
                f"GRANT CREATE, USAGE ON SCHEMA public"
            )
        if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
            return StoreError(
                f"{self.name} does not take a value that an engine or a reward gave ({_line(error)})"
            )
        return StoreError(
            f"{what}. Check store.url=postgresql://<user>@<host>:5432/<database>, that the server runs, "
            f"takes connections from this machine and has the role and the database, and the password in "
            f"PGPASSWORD or ~/.pgpass"
        )


def _set_up(connection: psycopg.Connection[Any]) -> None:
    """Make the tables where there are none; raises StoreError where others are in their place."""
    found = _versions(connection)
    if found is None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (APPLICATION,))  # another may be first
            found = _versions(connection)
            if found is None:
                connection.execute(_SCHEMA)
                connection.execute("INSERT INTO toa_exp VALUES (%s)", (VERSION,))
                found = [VERSION]
    if found != [VERSION]:
        raise StoreError(
            f"database {connection.info.dbname!r} has store format {', '.join(map(str, found))}, this "
            f"version of toa-exp reads {VERSION}; choose another database, or install the version that wrote "
            f"it"
        )


def _versions(connection: psycopg.Connection[Any]) -> list[int] | None:
    """The format of the tables that are there; None where there are none."""
    query = "SELECT relname FROM pg_class WHERE relname = ANY(%s) AND pg_table_is_visible(oid)"
    there = {name for (name,) in connection.execute(query, (_TABLES,))}
    if not there:
        return None
    if "toa_exp" not in there:
        raise StoreError(
            f"database {connection.info.dbname!r} has tables of something else ({', '.join(sorted(there))}); "
            f"choose another database, or a schema of the store's own (?options=-csearch_path%3D<schema>)"
        )
    return [version for (version,) in connection.execute("SELECT version FROM toa_exp")]


def _line(error: psycopg.Error) -> str:
    """The first lines of a message as one."""
    return " ".join(str(error).split()) or type(error).__name__
