"""A store on a server: what it says where it cannot be used, and where the password goes."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from helpers import cli, lines
from postgres import PASSWORD
from test_store import draw, sample

from toa_exp.database import Database
from toa_exp.errors import BadInput, StoreError
from toa_exp.redact import split_password
from toa_exp.storage import open_store

RUN = [
    "run",
    "task=simulated",
    "task.problems=6",
    "method=toa",
    "budget.samples=[4,8]",
    "tracking.mode=disabled",
]
RESULTS = Path("default/simulated/simulated/toa/seed=0")


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        ("postgresql://u:p%40@h:5432/d", "postgresql://u@h:5432/d", "p@"),
        ("store.url=postgresql://u:p@h/d?x=1", "store.url=postgresql://u@h/d?x=1", "p"),
        ("postgresql://u@h/d?password=p&x=1", "postgresql://u@h/d?x=1", "p"),
        ("postgresql://u:a@/b@h/d", "postgresql://u@h/d", "a@/b"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d", None),
        ("postgresql://", "postgresql://", None),
    ],
)
def test_a_password_is_taken_out_of_a_url(url, bare, password):
    assert split_password(url) == (bare, password)


def test_only_files_and_postgresql_are_stores(tmp_path):
    with pytest.raises(BadInput, match=r"'mysql'\. Allowed: postgres, postgresql"):
        open_store("mysql://host/database")


@pytest.mark.postgresql
class TestServer:
    @pytest.mark.slow
    def test_it_is_the_same_run_as_in_a_file(self, postgres, tmp_path):
        url = postgres.database()
        on_server = [f"store.url={url}", "store=postgresql"]
        assert cli(*RUN, "results=file", cwd=tmp_path).returncode == 0
        result = cli(*RUN, "results=server", *on_server, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        again = cli(*RUN, "-m", "results=again", f"store.path={url}", cwd=tmp_path)
        assert "0 samples drawn" in again.stdout
        for name in ("trajectories.jsonl", "curve.csv"):
            expected = (tmp_path / "file" / RESULTS / name).read_bytes()
            assert (tmp_path / "server" / RESULTS / name).read_bytes() == expected
            assert (tmp_path / "again" / RESULTS / name).read_bytes() == expected
        exports = [
            cli("store", "export", *store, cwd=tmp_path).stdout for store in (["results=file"], on_server)
        ]
        by_key = [{line["draw"]: line for line in lines(text)} for text in exports]
        assert by_key[0] == by_key[1] and by_key[0]
        assert "the database is sound" in cli("store", "verify", *on_server, cwd=tmp_path).stdout
        assert ": 6 problems" in cli("store", "stats", *on_server, cwd=tmp_path).stdout
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        said = [text.encode() for text in (result.stdout, result.stderr, again.stdout, again.stderr)]
        assert not [text for text in (*written, *said) if b"s3cret" in text]

    def test_what_is_wrong_is_said(self, postgres, monkeypatch):
        url = postgres.database()
        name = split_password(url)[0]
        for bad, message in {
            url.replace("s3cret", "guess"): "password authentication failed",
            url.replace("/study", "/nothing"): "does not exist",
            url.replace(f":{postgres.port}", ":1"): "refused",
        }.items():
            with pytest.raises(StoreError, match=message) as caught:
                open_store(bad)
            assert "PGPASSWORD" in str(caught.value) and "s3cret" not in str(caught.value)
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        open_store(name).close()
        with pytest.raises(BadInput, match="is no PostgreSQL URL"):
            open_store(url.replace("/study", "/study?wrong=1&x"))

    @pytest.mark.parametrize(
        ("statement", "message"),
        [
            ("CREATE TABLE draws (name text)", "tables of something else"),
            ("CREATE TABLE toa_exp (version bigint); INSERT INTO toa_exp VALUES (99)", "store format 99"),
        ],
    )
    def test_what_is_no_store_is_left_alone(self, postgres, statement, message):
        import psycopg

        url = postgres.database()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)
            with pytest.raises(StoreError, match=message):
                open_store(url)
            query = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            assert connection.execute(query).fetchall() == [(1,)]

    def test_a_connection_that_breaks_in_the_middle_of_something_is_made_anew(self, postgres, caplog):
        import psycopg

        database = Database(postgres.database())
        used = []

        def work(connection):
            used.append(connection)
            if len(used) == 1:  # as libpq says where the server shuts down while it waits for answers
                raise psycopg.OperationalError("cannot exit pipeline mode while busy")
            return connection.execute("SELECT 1").fetchone()

        assert database.transact(work) == (1,)
        assert used[0].closed and used[0] is not used[1]
        assert "busy; trying for 60 s" in caplog.text
        database.close()

    def test_what_is_on_its_way_is_never_missing(self, postgres):
        """Or it would be drawn again: a draw that is asked for while it is stored is there."""

        async def race():
            store = open_store(postgres.database())
            found = []
            for occurrence in range(50):
                put = store.put_draw(draw(occurrence), sample(str(occurrence)))
                found.append(await store.get_draw(draw(occurrence)))
                await put
            store.close()
            return [one.text for one in found]

        assert asyncio.run(race()) == [str(number) for number in range(50)]

    def test_what_is_pending_is_stored_when_it_is_closed(self, postgres):
        url = postgres.database()

        async def write():
            store = open_store(url)
            waiting = [store.put_draw(draw(number), sample(str(number))) for number in range(3000)]
            await asyncio.sleep(0)
            store.close()
            for one in waiting:
                one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*waiting)

        asyncio.run(write())
        store = open_store(url)
        assert list(store.rows("SELECT count(*) FROM draws")) == [(3000,)]
        store.close()
