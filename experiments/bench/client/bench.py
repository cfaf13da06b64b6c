"""What a request costs the client: the engine, bare HTTP clients and OpenAI's SDK, in one run.

A server in another process answers every chat completion at once, always with the same text. Each
way sends the same bodies, `concurrency` at a time, and reads text and usage out of the answer; in
every round each has its turn. Counted is the processor time of this process per request. The bare
asynchronous client, aiohttp, is the reference that all are divided by.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import httpx
import openai

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, canonical, digest, draw_key
from toa_exp.engines.openai import OpenAI
from toa_exp.ensemble import Agent

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 512}
Ask = Callable[[Draw], Awaitable[str]]
Way = Callable[[str, int], AbstractAsyncContextManager[Ask]]


def main() -> None:
    """Run all ways in turn and print their cost as a ratio to the bare client."""
    options = _options()
    if options.serve:
        asyncio.run(serve())
        return
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            measure(server.stdout.readline().strip(), options)
        finally:
            server.terminate()


def measure(url: str, options: argparse.Namespace) -> None:
    """Time every way in every round."""
    ways: dict[str, Way] = {
        "aiohttp": bare_aiohttp,
        "engine": engine,
        "streams": bare_streams,
        "httpx": bare_httpx,
        "openai_sdk": sdk,
    }
    print("signature", json.dumps(signature(options)), flush=True)
    draws = [draw(number, options.prompt_characters) for number in range(options.requests)]
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: asyncio.run(cost(way, url, draws, options)) for name, way in ways.items()})
    for name in ways:
        ratios = [seconds[name] / seconds["aiohttp"] for seconds in rounds]
        milliseconds = 1000 * statistics.median(seconds[name] for seconds in rounds)
        print(
            name, json.dumps({"cpu_over_aiohttp": spread(ratios), "cpu_ms_a_request": round(milliseconds, 3)})
        )


async def cost(way: Way, url: str, draws: Sequence[Draw], options: argparse.Namespace) -> float:
    """Processor seconds a request, once the connections are there."""
    async with way(url, options.concurrency) as ask:
        await send(ask, draws[: 2 * options.concurrency], options.concurrency)
        started = time.process_time()
        await send(ask, draws, options.concurrency)
        return (time.process_time() - started) / len(draws)


async def send(ask: Ask, draws: Sequence[Draw], concurrency: int) -> None:
    """Ask for all draws, as many at once as there are workers."""
    left = iter(draws)

    async def work() -> None:
        for one in left:
            assert await ask(one) == TEXT

    await asyncio.gather(*(work() for _ in range(concurrency)))


@asynccontextmanager
async def engine(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """This package's engine, with routing and limits."""
    agent = Agent("a", "m", None, SAMPLING)
    made = OpenAI({"a": agent}, base_url=url, start=concurrency, most=concurrency)

    async def ask(one: Draw) -> str:
        return (await made.sample(one)).text

    yield ask
    await made.close()


@asynccontextmanager
async def bare_aiohttp(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """aiohttp, with nothing around it."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(one: Draw) -> str:
            async with session.post(f"{url}/chat/completions", json=body(one)) as response:
                return text_of(await response.read())

        yield ask


@asynccontextmanager
async def bare_httpx(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """httpx, with nothing around it."""
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as session:

        async def ask(one: Draw) -> str:
            response = await session.post(f"{url}/chat/completions", json=body(one))
            return text_of(response.content)

        yield ask


@asynccontextmanager
async def bare_streams(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """asyncio's streams and the least of HTTP: what no library can undercut by much."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(one: Draw) -> str:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, int(port))
        content = json.dumps(body(one)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        text = text_of(await reader.readexactly(length))
        idle.append((reader, writer))
        return text

    yield ask
    for _, writer in idle:
        writer.close()


@asynccontextmanager
async def sdk(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """OpenAI's own client."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask(one: Draw) -> str:
            answer = await client.chat.completions.create(**body(one))
            assert answer.usage is not None and answer.usage.prompt_tokens > 0
            return str(answer.choices[0].message.content)

        yield ask


def body(one: Draw) -> dict[str, object]:
    """The request's body, the same as the engine sends."""
    return {"model": "m", **SAMPLING, "messages": one.messages, "seed": one.sampling_seed >> 32}


def text_of(content: bytes) -> str:
    """Text of an answer that states its tokens."""
    answer = json.loads(content)
    assert answer["usage"]["prompt_tokens"] > 0
    return str(answer["choices"][0]["message"]["content"])


def draw(number: int, characters: int) -> Draw:
    """A draw with a prompt of this length."""
    messages = [{"role": "user", "content": f"{number} ".ljust(characters, "x")}]
    agent, prompt = digest(b"a"), digest(canonical(messages))
    key = draw_key("p", agent, prompt, number, 0)
    return Draw(key, Problem("p", "?"), Request("a"), messages, agent, prompt, number, 0)


TEXT = "The answer follows from the sum of both. " * 30


async def serve() -> None:
    """Answer everything on a free port, whose URL is printed, until terminated."""
    message = {"role": "assistant", "content": TEXT}
    usage = {"prompt_tokens": 300, "completion_tokens": 270, "total_tokens": 570}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    content = json.dumps(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    answer = head.encode() + content

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(request.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(exchange, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def signature(options: argparse.Namespace) -> dict[str, object]:
    """What was measured, with what."""
    versions = {name: importlib.metadata.version(name) for name in ("aiohttp", "httpx", "openai")}
    settings = {key: value for key, value in vars(options).items() if key != "serve"}
    return {"python": platform.python_version(), **versions, **settings, "answer_characters": len(TEXT)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Processor time a request of several HTTP clients.")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--prompt-characters", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="be the server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
