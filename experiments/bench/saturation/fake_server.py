"""A server with so many places and log-normal times: requests wait their turn and for nothing else.

    python fake_server.py <places> <mean seconds of a request> <sigma of their logarithm>

prints its URL and serves until it is stopped.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import sys
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Times:
    """How many requests are worked on at once, and how long each takes, which its seed alone decides."""

    places: int
    mean: float
    sigma: float

    def seconds(self, seed: int) -> float:
        return math.exp(Random(seed).gauss(math.log(self.mean) - self.sigma**2 / 2, self.sigma))

    def ideal(self, seeds: list[int]) -> float:
        """Seconds that the places need for these requests at least, given in this order."""
        ends = [0.0] * self.places
        for seed in seeds:
            heapq.heapreplace(ends, ends[0] + self.seconds(seed))
        return max(ends)


async def serve(times: Times) -> None:
    free = asyncio.Semaphore(times.places)

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                seed = json.loads(await reader.readexactly(length))["seed"]
                async with free:
                    await asyncio.sleep(times.seconds(seed))
                content = json.dumps(answer(seed)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(exchange, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def answer(seed: int) -> dict[str, object]:
    message = {"role": "assistant", "content": f"Answer: {seed}"}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9},
    }


if __name__ == "__main__":
    asyncio.run(serve(Times(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))))
