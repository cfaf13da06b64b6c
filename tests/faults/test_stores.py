"""What befalls a store while real runs use it: nothing stored is lost, and all ends as it would have."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import cli, lines

pytestmark = pytest.mark.slow

RUN = ["run", "task=simulated", "task.problems=500", "method=toa", "budget.samples=[6,12]",
       "tracking.mode=disabled"]  # fmt: skip
RESULTS = Path("results/default/simulated/simulated/toa/seed=0")


def start(*arguments, cwd, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def results(folder, run=RESULTS):
    return {name: (folder / run / name).read_bytes() for name in ("trajectories.jsonl", "curve.csv")}


def exported(where, cwd):
    """The draws by key; the score of one may have been under way."""
    result = cli("store", "export", f"store.path={where}", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return {draw["draw"]: {**draw, "scores": None} for draw in lines(result.stdout)}


def drawn(folder):
    """How many samples the last run in a folder drew."""
    return int(re.findall(r"drawn=(\d+)", (folder / RESULTS / "run.log").read_text())[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run gives to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli(*RUN, cwd=folder).returncode == 0
    return results(folder)


@pytest.fixture
def server(request):
    """A server that the test may kill."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgresql]'")
    import postgres

    bin = postgres.binaries()
    if bin is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    made = postgres.Server(bin)
    yield made
    made.close()


def test_a_full_disk(whole, tmp_path):
    limit = 1_000_000  # bytes that a file may have, as a full disk or a quota sets it

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(*RUN, cwd=tmp_path, preexec_fn=limited)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "store.sqlite cannot be used" in err and "disk" in err and "Traceback" not in err
    kept = exported("results/store.sqlite", tmp_path)
    assert len(kept) > 500
    assert cli(*RUN, cwd=tmp_path).returncode == 0
    assert results(tmp_path) == whole
    after = exported("results/store.sqlite", tmp_path)
    assert {key: after[key] for key in kept} == kept and drawn(tmp_path) == len(after) - len(kept)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_two_runs_on_one_store(request, whole, tmp_path, kind):
    where = "store.sqlite" if kind == "sqlite" else request.getfixturevalue("postgres").database()
    runs = [start(*RUN, f"store.path={where}", f"experiment={name}", cwd=tmp_path) for name in "ab"]
    for process in runs:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    for name in "ab":
        assert results(tmp_path, Path(str(RESULTS).replace("default", name))) == whole
    assert cli("store", "verify", f"store.path={where}", cwd=tmp_path).returncode == 0


def wait_for_draws(url, draws, process):
    import psycopg

    count = 0
    while count < draws:
        assert process.poll() is None, process.communicate()
        try:
            with psycopg.connect(url) as connection:
                ((count,),) = connection.execute("SELECT count(*) FROM draws").fetchall()
        except psycopg.Error:  # the tables are not there yet
            count = 0
        time.sleep(0.1)
    return count


@pytest.mark.postgresql
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_comes_back(server, whole, tmp_path, end):
    url = server.database()
    process = start(*RUN, f"store.path={url}", cwd=tmp_path)
    wait_for_draws(url, 500, process)
    getattr(server, end)()
    time.sleep(2)
    server.start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "trying for 60 s" in err
    assert results(tmp_path) == whole
    assert len(exported(url, tmp_path)) == drawn(tmp_path)  # what was drawn is stored, and was drawn once


@pytest.mark.postgresql
def test_a_server_that_does_not_come_back(server, whole, tmp_path):
    url = server.database()
    # As the package does it, with less patience.
    code = "import toa_exp.database as d, toa_exp.cli as c; d._PATIENCE = 2.0; c.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *RUN, f"store.path={url}"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stored = wait_for_draws(url, 500, process)
    server.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "cannot be used" in err and "Traceback" not in err and "s3cret" not in err
    server.start()
    kept = exported(url, tmp_path)
    assert len(kept) >= stored
    assert cli(*RUN, f"store.path={url}", cwd=tmp_path).returncode == 0
    assert results(tmp_path) == whole
    after = exported(url, tmp_path)
    assert {key: after[key] for key in kept} == kept and drawn(tmp_path) == len(after) - len(kept)


@pytest.mark.postgresql
def test_a_full_disk_of_the_server(server, whole, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a small file system is mounted as root only")
    small = server.folder / "small"  # where the server may go
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        space = server.tablespace(small)
        url = server.database(space)
        ballast = small / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(small).free - 1_500_000))
        process = start(*RUN, f"store.path={url}", cwd=tmp_path)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "disk of its server is full" in err and "Traceback" not in err
        kept = exported(url, tmp_path)
        assert kept
        ballast.unlink()
        assert cli(*RUN, f"store.path={url}", cwd=tmp_path).returncode == 0
        assert results(tmp_path) == whole
        after = exported(url, tmp_path)
        assert {key: after[key] for key in kept} == kept and drawn(tmp_path) == len(after) - len(kept)
    finally:
        server.stop()
        subprocess.run(["umount", small])
