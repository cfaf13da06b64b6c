"""Server processes: started, watched, restarted, and ended with this one however it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout

from toa_exp.errors import BadInput, ToaError

log = logging.getLogger(__name__)

_GUARD = Path(__file__).with_name("guard.py")
_TAIL = 12  # lines of a log that an error shows
_STEADY = 600.0  # seconds without a fault after which earlier ones are forgotten
_LONGEST_PAUSE = 60.0
_LOOK = 10.0  # seconds for a server to say that it is up


class Ended(ToaError):
    """A server could not be started, or ended too often."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be run: `url` is where it answers, its `/health` says whether it is up.

    `environment` is set beside that of this process, and all output goes to the file `log`. Of those
    on the same `gpus` one loads at a time, since vLLM measures what the others leave.
    """

    name: str
    command: Sequence[str]
    health: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Care:
    """How servers are looked after.

    `startup` are the seconds that one may take until it is up, `every` those between two looks at it,
    and one that does not answer for `silence` seconds is restarted. `restarts` is how often in a row,
    after `pause` seconds at first and twice as long each time.
    """

    startup: float
    restarts: int
    pause: float = 1.0
    every: float = 5.0
    silence: float = 60.0


async def keep(servers: Sequence[Server], care: Care, ready: asyncio.Event) -> None:
    """Run servers until cancelled; `ready` is set once all of them are up.

    Raises Ended where one does not come up, or ended more often than `care` restarts it; whatever
    the end, none is left running.
    """
    up = [asyncio.Event() for _ in servers]
    loading = {gpu: asyncio.Lock() for server in servers for gpu in server.gpus}
    try:
        async with asyncio.TaskGroup() as group, ClientSession() as session:
            for server, event in zip(servers, up, strict=True):
                group.create_task(_Keeper(server, care, session, event, loading).keep())
            for event in up:
                await event.wait()
            ready.set()
            await asyncio.Event().wait()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class _Keeper:
    """Keeps one server up."""

    def __init__(
        self,
        server: Server,
        care: Care,
        session: ClientSession,
        up: asyncio.Event,
        loading: Mapping[int, asyncio.Lock],
    ) -> None:
        self._server = server
        self._care = care
        self._session = session
        self._up = up
        self._loading = [loading[gpu] for gpu in sorted(server.gpus)]

    async def keep(self) -> None:
        faults, since = 0, 0.0
        while True:
            reason = await self._live()
            if not self._up.is_set():
                raise Ended(f"{self._server.name} did not come up: {reason}.\n{self._said()}")
            now = time.monotonic()
            faults = 1 if now - since > _STEADY else faults + 1
            since = now
            if faults > self._care.restarts:
                raise Ended(
                    f"{self._server.name} {reason} and is not restarted again after {self._care.restarts} "
                    f"times (restarts={self._care.restarts}).\n{self._said()}"
                )
            pause = min(_LONGEST_PAUSE, self._care.pause * 2 ** (faults - 1))
            log.warning("%s %s; starting it again in %.0f s", self._server.name, reason, pause)
            await asyncio.sleep(pause)

    async def _live(self) -> str:
        """Run the server once, when its GPUs are free to load on; returns why it is no more."""
        async with AsyncExitStack() as loading:
            for lock in self._loading:
                await loading.enter_async_context(lock)
            return await self._run(loading)

    async def _run(self, loading: AsyncExitStack) -> str:
        with self._server.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-I", str(_GUARD), *self._server.command],
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._server.environment},
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )
        ended = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._watch(loading))
        try:
            await asyncio.wait([ended, watching], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"ended with status {ended.result()}"
            return watching.result()
        finally:
            watching.cancel()
            assert process.stdin is not None
            process.stdin.close()
            await asyncio.shield(ended)

    async def _watch(self, loading: AsyncExitStack) -> str:
        """Look at the server until it is silent for too long; `loading` ends when it is up."""
        care = self._care
        started = heard = time.monotonic()
        here = False
        while True:
            if await self._answers():
                if not here:
                    log.info("%s is up after %.0f s", self._server.name, time.monotonic() - started)
                heard = time.monotonic()
                here = True
                await loading.aclose()
                self._up.set()
            silent = time.monotonic() - heard
            if not here and silent > care.startup:
                return f"was not up after {care.startup:g} s (startup={care.startup:g})"
            if here and silent > care.silence:
                return f"did not answer for {silent:.0f} s"
            await asyncio.sleep(care.every if here else min(0.25, care.every))

    async def _answers(self) -> bool:
        try:
            async with self._session.get(self._server.health, timeout=ClientTimeout(total=_LOOK)) as response:
                return response.status == 200
        except (TimeoutError, ClientError, OSError):
            return False

    def _said(self) -> str:
        lines = self._server.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"The end of {self._server.log}:", *(f"  {line}" for line in lines[-_TAIL:])])


def ports(host: str, first: int | None, number: int) -> list[int]:
    """Ports that nobody listens at: from `first` on, or any. Raises BadInput for one that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as held:
        found = []
        for offset in range(number):
            port = 0 if first is None else first + offset
            listening = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((host, port))
            except (OSError, OverflowError) as error:
                raise BadInput(
                    f"port {port} of {host} cannot be had ({error}); give port=<the first of {number}>, or "
                    f"port=null for any"
                ) from error
            found.append(int(listening.getsockname()[1]))
        return found
