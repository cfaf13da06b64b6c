"""A server on loopback that speaks OpenAI's chat completions as a test tells it to."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Answer:
    """What to answer: a JSON value or raw bytes, after `delay` seconds; `cut` bytes never come."""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int = 0


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict


def completion(text: str | None = "4", *, reason: str = "stop", usage: object = (5, 2), **message) -> dict:
    """The body of a chat completion."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    message = {"role": "assistant", "content": text, **message}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}


def refusal(message: str, status: int = 400, headers: dict[str, str] | None = None, **fields) -> Answer:
    """An error of a server."""
    return Answer({"error": {"message": message, **fields}}, status, headers or {})


class Endpoint:
    """The server; `asked` are the requests so far, `most` how many it had at once."""

    def __init__(self, respond: Callable[[Asked], Answer]) -> None:
        self.respond = respond
        self.asked: list[Asked] = []
        self.most = 0
        self.url = ""
        self._now = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
        }
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(content) if content else {}
        asked = Asked(head[0].split()[1], headers, body)
        self.asked.append(asked)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            answer = self.respond(asked)
            await asyncio.sleep(answer.delay)
        finally:
            self._now -= 1
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        lines = [f"HTTP/1.1 {answer.status} Said", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content[: len(content) - answer.cut])
        await writer.drain()
        return not answer.cut


@contextmanager
def serving(respond: Callable[[Asked], Answer]) -> Iterator[Endpoint]:
    """Serve from a thread of its own, on a free port."""
    endpoint = Endpoint(respond)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
        endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started.set()
        await stop.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=main)
    thread.start()
    started.wait(10)
    try:
        yield endpoint
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
