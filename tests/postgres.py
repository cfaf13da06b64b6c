"""A PostgreSQL server of the tests' own, in a temporary folder, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

ROLE, PASSWORD = "researcher", "s3cret/word@ß"


def binaries() -> Path | None:
    """The folder of initdb and postgres, newest version first; None where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    here = shutil.which("initdb")
    return found[-1].parent if found else Path(here).parent if here else None


class Server:
    """A server; `url` has its password, `open_url` the same without it."""

    def __init__(self, bin: Path) -> None:
        self._bin = bin
        self.folder = Path(tempfile.mkdtemp(prefix="toa-postgresql-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (self.folder / "password").write_text(PASSWORD + "\n")
        self._databases = 0
        self._run("initdb", "-U", ROLE, f"--pwfile={self.folder}/password", "-A", "scram-sha-256",
                  "-E", "SQL_ASCII", "--locale=C", "-N")  # fmt: skip
        self.start()

    def start(self, *settings: str) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        options += " -c max_connections=40 " + " ".join(f"-c {setting}" for setting in settings)
        self._run("pg_ctl", "start", "-w", "-l", f"{self.folder}/log", "-o", options)

    def stop(self) -> None:
        """End the server and what it had under way, as a machine that is shut down."""
        self._run("pg_ctl", "stop", "-m", "fast", "-w")

    def kill(self) -> None:
        """Kill the server and all of its processes, as a power failure does."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
        for process in (pid, *map(int, children)):
            os.kill(process, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
        time.sleep(0.2)

    def database(self, tablespace: str = "pg_default") -> str:
        """The URL, password included, of a new and empty database."""
        self._databases += 1
        name = f"study{self._databases}"
        self._execute(f"CREATE DATABASE {name} TABLESPACE {tablespace}")
        return self.url(name)

    def tablespace(self, folder: Path) -> str:
        """The name of a tablespace in an empty folder, where databases may then be."""
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        return "small"

    def _execute(self, command: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(command)

    def url(self, name: str, password: str | None = PASSWORD) -> str:
        """The URL of a database."""
        from urllib.parse import quote

        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{ROLE}{secret}@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """Stop the server and remove its folder."""
        subprocess.run(self._command("pg_ctl", "stop", "-m", "immediate"), capture_output=True, **_account())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._bin / program), "-D", str(self.folder / "data"), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / "commands").open("a") as out:
            command = self._command(program, *arguments)
            result = subprocess.run(command, stdout=out, stderr=out, cwd="/", **_account())
        if result.returncode:
            raise RuntimeError((self.folder / "commands").read_text())


def _account() -> dict[str, Any]:
    """Whose processes a server's are: initdb refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture(scope="session")
def postgres():
    """A running server; skips where there is no PostgreSQL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgresql]'")
    bin = binaries()
    if bin is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    server = Server(bin)
    yield server
    server.close()
