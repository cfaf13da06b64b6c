"""How near a search keeps an engine to what it does when everything is asked for at once.

A search waits for a reply before it decides on, so an engine is busy only as far as other problems
fill the gap. Each run of a method over Q problems is recorded, and the same draws are then handed to
the same engine all at once; the result is the rate of the run over that rate (1 is saturated). Samples
are scored by a hash, so that the engine is all that takes time.

Engines: `fake`, a server process on loopback with a fixed number of places and log-normal times, which
the request alone decides; `transformers`, the lab's models in this process; `vllm`, the same by
engine=vllm; `openai`, a server that is running, with --url and --model. On the fake server two other
schemes run the same searches: a thread a question with blocking calls, as the authors' code does it,
and TreeQuest's StandardMCTS in threads.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import http.client
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import hydra
from omegaconf import DictConfig

from toa_exp import __version__, labels
from toa_exp.app import CONF
from toa_exp.core import Problem, Reply, Request, Usage
from toa_exp.draws import Draw, Sample, Score, digest, draw_key, encode
from toa_exp.engines.base import Engine
from toa_exp.job import Job, assemble
from toa_exp.runner import Outcome
from toa_exp.store import Store

AGENTS = ["ash", "elm", "oak", "fir"]
SHAPE = (
    "{model_type:llama,hidden_size:8,intermediate_size:16,num_hidden_layers:2,num_attention_heads:2,"
    "vocab_size:32}"
)
TAU = 0.1


class Hash:
    """A reward that takes no time."""

    shape = None

    def fingerprint(self) -> Mapping[str, str]:
        return {"reward": "hash"}

    async def score(self, problem: Problem, text: str) -> Score:
        return Score(reward_of(text), 0, 0.0)

    async def close(self) -> None:
        pass


def reward_of(text: str) -> float:
    return Random(text).gauss(0.0, TAU)


class Recording:
    """An engine that keeps the draws it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self.agents = engine.agents
        self.draws: list[Draw] = []
        self._engine = engine

    async def sample(self, draw: Draw) -> Sample:
        self.draws.append(draw)
        return await self._engine.sample(draw)

    async def close(self) -> None:
        await self._engine.close()


class Silent:
    """An observer that lets nothing fail unseen."""

    def outcomes(self, outcomes: list[Outcome]) -> None:
        pass

    def parked(self, problem: str, reason: str) -> None:
        raise SystemExit(f"problem {problem}: {reason}")


class Clock:
    """Seconds of wall and of this process's processor since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._processor


def compose(overrides: list[str]) -> DictConfig:
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides)


def given(
    options: argparse.Namespace, url: str | None, questions: Path, method: str, problems: int
) -> list[str]:
    """The overrides of a run, as `toa-exp run` takes them."""
    common = [f"method={method}", f"budget.samples=[{options.samples}]", f"concurrency={problems}"]
    if options.engine in ("transformers", "vllm"):
        few = [f"~ensemble.agents.{name}" for name in ("ben", "cleo", "dan")[options.agents - 1 :]]
        chosen = ["task=lab_math", f"task.problems={problems}", "ensemble=lab", f"engine={options.engine}"]
        return [*common, *chosen, *few, *options.overrides]
    model = options.model or "m"
    agents = ",".join(f"{name}:{{model:{model},architecture:{SHAPE}}}" for name in AGENTS[: options.agents])
    chosen = ["task=jsonl", f"task.path={questions}", f"task.limit={problems}", "engine=openai"]
    remote = [f"engine.base_url={url}", f"ensemble.sampling.max_tokens={options.tokens}"]
    return [
        *common,
        *chosen,
        *remote,
        "~ensemble.agents",
        f"+ensemble.agents={{{agents}}}",
        *options.overrides,
    ]


async def search(job: Job, folder: Path) -> tuple[list[Draw], tuple[float, float]]:
    """Run the job; returns its draws and what it took."""
    recording = Recording(job.engine)
    job = replace(job, engine=recording)
    (folder / "store.sqlite").unlink(missing_ok=True)
    with closing(Store(folder / "store.sqlite")) as store:
        clock = Clock()
        await job.runner(job.sampler(store)).run(folder / "trajectories.jsonl", Silent())
        return recording.draws, clock.read()


async def at_once(engine: Engine, draws: list[Draw]) -> tuple[float, float]:
    """Ask for all draws together; what they took."""
    clock = Clock()
    await asyncio.gather(*(engine.sample(draw) for draw in draws))
    return clock.read()


async def measure(config: DictConfig, folder: Path) -> tuple[list[Draw], dict[str, tuple[float, float]]]:
    """Draws, and what the search and all of them at once took, on one engine that is warm."""
    job = replace(assemble(config, []), reward=Hash())
    try:
        await asyncio.gather(*(job.engine.sample(draw) for draw in warm_up(job)))
        draws, searched = await search(job, folder)
        return draws, {"search": searched, "at once": await at_once(job.engine, draws)}
    finally:
        await job.engine.close()


def warm_up(job: Job) -> list[Draw]:
    """A draw an agent, so that models are loaded."""
    problem = next(job.task.problems())
    messages = job.task.render(problem, "direct", [])
    return [
        Draw(draw_key("warm", encode(name), b"", 0, 0), problem, Request(name), messages, b"", b"", 0, 0)
        for name in job.engine.agents
    ]


def threads(count: int, work: Callable[[int], None]) -> float:
    """Wall seconds of `work` in as many threads, all started together."""
    clock = Clock()
    running = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return clock.read()[0]


def blocking(url: str) -> Callable[[str, int], str]:
    """A call that waits for its answer, over a connection of its own thread."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    local = threading.local()

    def ask(prompt: str, seed: int) -> str:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(host, int(port))
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "seed": seed}
        local.connection.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = json.loads(local.connection.getresponse().read())
        return str(answer["choices"][0]["message"]["content"])

    return ask


def thread_a_question(config: DictConfig, url: str, problems: int, samples: int, method: str) -> float:
    """The same search, a thread a question: every thread waits for each of its samples in turn."""
    from toa_exp.build import build_function

    make, ask = build_function(config.method, "method"), blocking(url)

    def work(number: int) -> None:
        problem = Problem(f"q{number}", "?")
        running = make(problem, tuple(AGENTS), samples, Random(number))
        asked = 0
        replies: list[Reply] | None = None
        try:
            while True:
                requests = next(running) if replies is None else running.send(replies)
                replies = []
                for request in requests:
                    text = ask(f"{number}", seed_of(number, asked))
                    asked += 1
                    replies.append(Reply(request, text, reward_of(text), Usage(9, 9)))
        except StopIteration:
            pass

    return threads(problems, work)


def treequest_in_threads(url: str, problems: int, samples: int) -> float:
    """TreeQuest's StandardMCTS, a thread a question."""
    from treequest import StandardMCTS

    ask = blocking(url)

    def work(number: int) -> None:
        asked = iter(range(samples))

        def generate(draft: str | None) -> tuple[str, float]:
            text = ask(f"{number}", seed_of(number, next(asked)))
            return text, 1.0 / (1.0 + math.exp(-reward_of(text) / TAU))

        algorithm: StandardMCTS[str] = StandardMCTS()
        state = algorithm.init_tree()
        for _ in range(samples):
            state = algorithm.step(state, dict.fromkeys(AGENTS, generate), inplace=True)

    return threads(problems, work)


def seed_of(number: int, asked: int) -> int:
    return int.from_bytes(digest(encode(f"{number}/{asked}"))[:4], "little") >> 1


async def serve(options: argparse.Namespace) -> None:
    """The fake server: `places` requests at a time, first come first served, log-normal seconds each."""
    free = asyncio.Semaphore(options.places)
    shift = math.log(options.latency) - options.sigma**2 / 2  # so that the mean is `latency`

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                seed = json.loads(await reader.readexactly(length))["seed"]
                seconds = math.exp(Random(seed).gauss(shift, options.sigma))
                async with free:
                    await asyncio.sleep(seconds)
                message = {"role": "assistant", "content": f"Answer: {seed}"}
                body = {
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 9, "completion_tokens": 9},
                }
                content = json.dumps(body).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(exchange, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def ideal(seeds: list[int], options: argparse.Namespace) -> float:
    """Seconds that the fake server's places need for these requests at least, given in this order."""
    shift = math.log(options.latency) - options.sigma**2 / 2
    ends = [0.0] * options.places
    for seed in seeds:
        heapq.heapreplace(ends, ends[0] + math.exp(Random(seed).gauss(shift, options.sigma)))
    return max(ends)


def rows(options: argparse.Namespace, url: str | None, folder: Path) -> None:
    """Measure and print, one line a method and number of problems."""
    questions = folder / "questions.jsonl"
    lines = [json.dumps({"id": f"q{n}", "prompt": f"What is {n}?", "reference": str(n)}) for n in range(4096)]
    questions.write_text("\n".join(lines) + "\n")
    for problems in options.problems:
        for method in options.methods:
            config = compose(given(options, url, questions, method, problems))
            for _ in range(options.rounds):
                draws, took = asyncio.run(measure(config, folder))
                row: dict[str, Any] = {"engine": options.engine, "method": method, "problems": problems}
                row |= {
                    "samples": len(draws),
                    "saturation": ratio(took, 0),
                    "by_processor_time": ratio(took, 1),
                }
                if options.engine == "fake":
                    least = ideal([draw.sampling_seed >> 32 for draw in draws], options)
                    row["at_once_of_ideal"] = round(least / took["at once"][0], 3)
                    del row["by_processor_time"]
                    if options.others and url is not None:
                        rate = len(draws) / took["at once"][0]
                        row |= others(config, url, problems, options.samples, method, rate)
                print(json.dumps(row), flush=True)


def ratio(took: Mapping[str, tuple[float, float]], clock: int) -> float:
    return round(took["at once"][clock] / took["search"][clock], 3)


def others(
    config: DictConfig, url: str, problems: int, samples: int, method: str, rate: float
) -> dict[str, float]:
    """The rates of other schemes over that of all requests at once."""
    found = {"thread_a_question": thread_a_question(config, url, problems, samples, method)}
    if method == "toa":
        found["treequest_in_threads"] = treequest_in_threads(url, problems, samples)
    return {name: round(problems * samples / seconds / rate, 3) for name, seconds in found.items()}


def signature(options: argparse.Namespace) -> dict[str, object]:
    """What was measured, where."""
    settings = {key: value for key, value in vars(options).items() if key not in ("serve", "url")}
    load = [round(value, 1) for value in os.getloadavg()]
    return {**settings, "toa-exp": __version__, "python": platform.python_version(),
            "cores": os.cpu_count(), "load": load}  # fmt: skip


def main() -> None:
    options = _options()
    if options.serve:
        asyncio.run(serve(options))
        return
    print("signature", json.dumps(signature(options)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.engine != "fake":
            rows(options, options.url, Path(folder))
            return
        command = [sys.executable, *sys.argv, "--serve"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                rows(options, server.stdout.readline().strip(), Path(folder))
            finally:
                server.terminate()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How near searches keep an engine to saturation.")
    parser.add_argument("engine", choices=["fake", "transformers", "vllm", "openai"])
    parser.add_argument("--problems", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--methods", nargs="+", default=["toa", "moa"])
    parser.add_argument("--samples", type=int, default=16, help="of a problem")
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--places", type=int, default=64, help="requests that the fake server works on at once"
    )
    parser.add_argument("--latency", type=float, default=1.0, help="mean seconds of a request there")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of its seconds")
    parser.add_argument("--others", action="store_true", help="the other schemes too, on the fake server")
    parser.add_argument("--url", help="of the server, up to /v1")
    parser.add_argument("--model", help="that the server has")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most, on a server")
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones of toa-exp run")
    parser.add_argument("--serve", action="store_true", help="be the fake server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
