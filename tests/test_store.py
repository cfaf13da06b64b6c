"""The store: first write wins, damage is named, nothing foreign is touched; in a file and on a server."""

import asyncio
import multiprocessing
import sqlite3
import threading
from dataclasses import replace

import pytest

from toa_exp.core import Problem, Request, Usage
from toa_exp.draws import Draw, Sample, Score, draw_key, score_key
from toa_exp.errors import StoreError
from toa_exp.storage import open_store
from toa_exp.store import Store

PROBLEM = Problem("p", "What?", "2")
AGENT, PROMPT = b"a" * 16, b"m" * 16


def draw(occurrence: int = 0) -> Draw:
    key = draw_key("p", AGENT, PROMPT, occurrence, 0)
    return Draw(key, PROBLEM, Request("a"), [], AGENT, PROMPT, occurrence, 0)


def sample(text: str, failure: str | None = None) -> Sample:
    return Sample(text, Usage(3, 4), 0.25, failure)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def where(request, tmp_path):
    """A path or a URL of a store that is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    return request.getfixturevalue("postgres").database()


def test_rows_come_back_as_written(where):
    text = "naïve 漢字 \0 \u202e ‏ and a long tail " + "x" * 100_000

    async def write():
        store = open_store(where)
        stored = await store.put_draw(draw(), sample(text))
        await store.put_draw(draw(1), sample("", "context_window"))
        key = score_key(b"r" * 16, PROBLEM, text)
        await store.put_score(key, Score(-1.5, 7, 0.125))
        store.close()
        return stored, key

    stored, key = asyncio.run(write())

    async def read():
        store = open_store(where)
        rows = [await store.get_draw(draw()), await store.get_draw(draw(1)), await store.get_draw(draw(2))]
        score = await store.get_score(key)
        store.close()
        return rows, score

    rows, score = asyncio.run(read())
    assert rows == [stored, sample("", "context_window"), None] and stored == sample(text)
    assert score == Score(-1.5, 7, 0.125)


def test_the_first_write_wins_and_the_loser_is_told(where):
    async def race():
        one, other = open_store(where), open_store(where)
        results = await asyncio.gather(
            one.put_draw(draw(), sample("first")),
            one.put_draw(draw(1), sample("alone")),
            other.put_draw(draw(), sample("second")),
            other.put_draw(draw(2), sample("alone too")),
        )
        one.close()
        other.close()
        return [result.text for result in results]

    ours, alone, theirs, alone_too = asyncio.run(race())
    assert ours == theirs and ours in ("first", "second")  # on a server either may be
    assert (alone, alone_too) == ("alone", "alone too")


@pytest.mark.parametrize("own", [True, False])
def test_what_another_process_writes_later_is_found(where, own):
    async def share():
        one, other = open_store(where), open_store(where)
        if own:
            await one.put_draw(draw(), sample("mine"))
        before = await one.get_draw(draw(1))
        await other.put_draw(draw(1), sample("theirs"))
        after = await one.get_draw(draw(1))
        one.close()
        other.close()
        return before, after

    assert asyncio.run(share()) == (None, sample("theirs"))


def test_rows_are_found_however_many_problems_came_between(where, monkeypatch):
    monkeypatch.setattr("toa_exp.store._PROBLEMS_KEPT", 2)
    draws = [replace(draw(), problem=replace(PROBLEM, id=str(number))) for number in range(5)]

    async def write_and_read():
        store = open_store(where)
        for one in draws:
            await store.put_draw(one, sample(one.problem.id))
        found = [await store.get_draw(one) for one in draws]
        store.close()
        return found

    assert asyncio.run(write_and_read()) == [sample(one.problem.id) for one in draws]


def test_scores_of_equal_ids_in_different_tasks_are_apart():
    other = Problem("p", "What else?", "2")
    assert score_key(b"r", PROBLEM, "text").digest != score_key(b"r", other, "text").digest


def _write_many(where: str, offset: int) -> None:
    async def write():
        store = open_store(where)
        for start in range(0, 300, 10):
            await asyncio.gather(
                *(store.put_draw(draw(i), sample(f"{offset} {i}")) for i in range(start, start + 10))
            )
        store.close()

    asyncio.run(write())


def test_several_processes_share_a_store(where):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(where, offset)) for offset in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = open_store(where)
    assert next(store.rows("SELECT count(*), count(DISTINCT key) FROM draws")) == (300, 300)
    store.close()


def test_a_store_that_another_process_is_making_is_waited_for(tmp_path):
    path = tmp_path / "store.sqlite"
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode = DELETE")  # as it is before its maker has come that far
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.close)
    release.start()
    store = Store(path)
    release.join()
    assert next(store.rows("PRAGMA journal_mode")) == ("wal",)
    store.close()


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign", "version"])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, damage):
    path = tmp_path / "store.sqlite"
    if damage == "text":
        path.write_text("id,question\n" * 1000)
    elif damage == "foreign":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE customers (name TEXT)")
        database.close()
    else:
        _write_many(str(path), 0)
        if damage == "version":
            database = sqlite3.connect(path)
            database.execute("PRAGMA user_version = 99")
            database.close()
        else:
            path.write_bytes(path.read_bytes()[:10_000])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"store\.sqlite"):
        Store(path)
    assert path.read_bytes() == before


def test_a_full_disk_fails_the_writers_and_keeps_what_was_stored(tmp_path):
    async def fill():
        store = Store(tmp_path / "store.sqlite")
        await store.put_draw(draw(), sample("kept"))
        store._db.execute("PRAGMA max_page_count = 10")  # as SQLite sees a full disk
        with pytest.raises(StoreError, match="disk"):
            await store.put_draw(draw(1), sample("x" * 1_000_000))
        store.close()

    asyncio.run(fill())
    store = Store(tmp_path / "store.sqlite")
    assert [row[0] for row in store.rows("SELECT text FROM draws")] == ["kept"]
    store.close()


def test_an_error_that_is_none_of_sqlites_reaches_the_writer(tmp_path):
    async def write():
        store = Store(tmp_path / "store.sqlite")
        with pytest.raises(OverflowError):
            await store.put_draw(replace(draw(), seed=2**80), sample("text"))
        kept = await store.put_draw(draw(1), sample("kept"))
        store.close()
        return kept

    assert asyncio.run(write()) == sample("kept")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Store(tmp_path / "file" / "store.sqlite")
