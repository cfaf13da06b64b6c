"""Real runs against real server processes, and what must be the same afterwards."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import SMALL, cli, lines

SERVER = Path(__file__).with_name("server.py")
SHAPE = ",".join(f"{name}:{value}" for name, value in SMALL.items())
NEVER = 10**9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A port whose server may be started and killed; `answered` counts what it answered well."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._record = folder / f"record-{self.port}"
        self._record.touch()
        self._process: subprocess.Popen[str] | None = None

    def start(self, fault: str = "none", first: int = NEVER, last: int = NEVER) -> None:
        command = [sys.executable, str(SERVER), *map(str, (self.port, self._record, fault, first, last))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "serving\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None

    @property
    def answered(self) -> Counter[str]:
        return Counter(self._record.read_text().splitlines())

    def forget(self) -> None:
        self._record.write_text("")


@contextmanager
def service(folder: Path, fault: str = "none", first: int = NEVER, last: int = NEVER) -> Iterator[Service]:
    """A server that runs meanwhile."""
    made = Service(folder)
    try:
        made.start(fault, first, last)
        yield made
    finally:
        made.kill()


def arguments(questions: Path, url: str, *more: str) -> list[str]:
    """A run of TOA with two agents and a reward behind `url`."""
    return [
        "run", "task=jsonl", f"task.path={questions}", "ensemble=simulated", "engine=openai",
        f"ensemble.agents={{ash:{{model:m,architecture:{{{SHAPE}}}}},elm:{{model:n,architecture:{{{SHAPE}}}}}}}",
        f"engine.base_url={url}/v1", "engine.start=4", "engine.pause=0.01", "engine.timeout=1.0",
        "reward=http", "reward.model=fake", f"reward.base_url={url}", "reward.pause=0.01",
        "reward.timeout=1.0", "method=toa", "budget.samples=6", "backoff=0.02",
        "warm_up=null",  # its two scores would have to be told apart from those of the samples
        *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Without a proxy between a run and a server on loopback."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def toa(folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    """`toa-exp` in a folder, which is made."""
    folder.mkdir(exist_ok=True)
    return cli(*given, cwd=folder, env=environment())


def begin(folder: Path, *given: str) -> subprocess.Popen[str]:
    """`toa-exp`, started and not waited for."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *given],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def trajectories(folder: Path) -> list[object]:
    """All but the seconds, which are measured and differ."""
    (path,) = folder.rglob("trajectories.jsonl")
    records = lines(path.read_text())
    for record in records:
        record["cost"].pop("seconds")
    return records


def stored(folder: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Keys of the draws in the store, and problems and texts of the scores."""
    exported = lines(toa(folder, "store", "export").stdout)
    scores = {(draw["problem"], draw["text"]) for draw in exported if draw["scores"]}
    return {draw["draw"] for draw in exported}, scores


def until(what: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)
