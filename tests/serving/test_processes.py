"""Server processes, real ones: started, restarted, and ended however this one ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from toa_exp.errors import BadInput
from toa_exp.serving import processes
from toa_exp.serving.processes import Care, Ended, Server, keep, ports

CARE = Care(startup=20.0, restarts=2, pause=0.01, every=0.05, silence=5.0)
GUARD = Path(processes.__file__).with_name("guard.py")
# Answers /health, and writes the ids of its process and of a child of its own to a file.
SERVER = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[2], "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
print("serving")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(folder: Path, script: str = SERVER) -> Server:
    (port,) = ports("127.0.0.1", None, 1)
    command = [sys.executable, "-c", script, str(port), str(folder / "pids")]
    return Server("test server", command, f"http://127.0.0.1:{port}/health", folder / "log")


def started(folder: Path) -> list[list[int]]:
    """The processes of every start: server and child."""
    path = folder / "pids"
    return (
        [[int(pid) for pid in line.split()] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def until(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")


def run(one: Server, work: Callable[[asyncio.Event], object], care: Care = CARE) -> None:
    """Keep a server while `work`, a coroutine function, runs."""

    async def main() -> None:
        ready = asyncio.Event()
        keeping = asyncio.create_task(keep([one], care, ready))
        working = asyncio.create_task(work(ready))
        await asyncio.wait([keeping, working], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        keeping.cancel()
        results = await asyncio.gather(keeping, working, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "one goes on with a session that is closed"
        for result in results:
            if isinstance(result, Exception):
                raise result

    asyncio.run(main())


def test_a_server_that_dies_is_started_again_and_nothing_is_left_at_the_end(tmp_path):
    async def work(ready: asyncio.Event) -> None:
        await ready.wait()
        os.kill(started(tmp_path)[0][0], signal.SIGKILL)
        while len(started(tmp_path)) < 2:
            await asyncio.sleep(0.02)

    run(server(tmp_path), work)
    pids = [pid for pair in started(tmp_path) for pid in pair]
    assert len(pids) == 4
    until(lambda: not any(map(alive, pids)))
    assert (tmp_path / "log").read_text().count("serving") >= 1


LOADING = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        say("up")
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
    def log_message(self, *_):
        pass
def say(what):
    with open(sys.argv[2], "a") as file:
        file.write(f"{what} {sys.argv[1]}\\n")
say("loading")
time.sleep(0.3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_of_those_on_the_same_gpus_one_loads_at_a_time(tmp_path):
    on = [(0,), (0, 1), (1,), (0,)]
    servers = [replace(server(tmp_path, LOADING), gpus=gpus) for gpus in on]

    async def main() -> None:
        ready = asyncio.Event()
        keeping = asyncio.create_task(keep(servers, CARE, ready))
        await ready.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(main())
    gpus = {one.command[-2]: set(one.gpus) for one in servers}
    loading: set[str] = set()
    for what, port in (line.split() for line in (tmp_path / "pids").read_text().splitlines()):
        if what == "up":
            loading.discard(port)
        else:
            assert not any(gpus[port] & gpus[other] for other in loading)
            loading.add(port)
    assert not loading and len(gpus) == len(on)


@pytest.mark.slow
def test_one_that_is_silent_is_started_again(tmp_path, monkeypatch):
    async def work(ready: asyncio.Event) -> None:
        await ready.wait()
        os.kill(started(tmp_path)[0][0], signal.SIGSTOP)
        while len(started(tmp_path)) < 2:
            await asyncio.sleep(0.02)

    hasty = Care(startup=20.0, restarts=2, pause=0.01, every=0.05, silence=0.3)
    monkeypatch.setattr(processes, "_LOOK", 0.2)  # a stopped server takes connections and answers none
    run(server(tmp_path), work, hasty)
    assert len(started(tmp_path)) == 2


def test_one_that_keeps_dying_is_given_up_with_its_last_words(tmp_path):
    async def work(ready: asyncio.Event) -> None:
        killed = 0
        while True:
            await asyncio.sleep(0.02)
            for pid, _ in started(tmp_path)[killed:]:
                await ready.wait()
                os.kill(pid, signal.SIGKILL)
                killed += 1

    with pytest.raises(Ended, match=r"ended with status 137 and is not restarted again after 2 times"):
        run(server(tmp_path), work)
    assert len(started(tmp_path)) == 3


def test_one_that_never_comes_up_is_not_tried_again(tmp_path):
    async def work(_: asyncio.Event) -> None:
        await asyncio.sleep(30)

    with pytest.raises(Ended, match=r"did not come up: ended with status 3[\s\S]*no model here"):
        run(server(tmp_path, "import sys; print('no model here'); sys.exit(3)"), work)
    slow = Care(startup=0.2, restarts=2, every=0.05)
    with pytest.raises(Ended, match=r"was not up after 0\.2 s"):
        run(server(tmp_path, "import time; time.sleep(60)"), work, slow)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_end_with_the_parent_however_it_ends(tmp_path, number):
    one = server(tmp_path)
    parent = (  # in the background of a shell it would ignore SIGINT
        "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, sys.executable, str(GUARD), *one.command],
        start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: started(tmp_path))
    process.send_signal(number)
    process.wait()
    until(lambda: not any(map(alive, started(tmp_path)[0])))


def test_a_command_that_ignores_sigterm_is_killed(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True)\n"
    stubborn += "time.sleep(600)"
    source = GUARD.read_text().replace("_GRACE = 10.0", "_GRACE = 0.2")
    guard = tmp_path / "guard.py"
    guard.write_text(source)
    with subprocess.Popen(
        [sys.executable, guard, sys.executable, "-c", stubborn],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "x\n"
        process.stdin.close()
        assert process.wait(20) == 128 + signal.SIGKILL


def test_ports_are_free_and_one_that_is_taken_is_named():
    import socket

    found = ports("127.0.0.1", None, 5)
    assert len(set(found)) == 5
    if socket.has_ipv6:
        assert len(set(ports("::1", None, 2))) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"port {number} of 127\.0\.0\.1 cannot be had"):
            ports("127.0.0.1", number, 1)
