"""How near a search keeps an engine to what it does when everything is asked for at once.

A search waits for a reply before it decides on, so an engine is busy only as far as other problems
fill the gap. Each run of a method over Q problems is recorded, and the same draws are then handed to
the engine all at once; the result is the rate of the run over that rate (1 is saturated). The engine is
started anew for that: one that has read these prompts before has them in its prefix cache. Samples
are scored by a hash, so that the engine is all that takes time. Every engine works on as many requests
at once, `--places`, shared out evenly among the agents where each has a model of its own. With
`--rounds` the two are measured in turn, since a machine's speed changes; medians are printed last. What
the fake server does takes the same time whenever it is asked: one round is enough there.

Engines: `fake`, a server process on loopback with log-normal times, which the request alone decides;
`transformers`, the lab's models in this process; `vllm`, the same by engine=vllm; `openai`, a server
that is running, with --url and --model, which has as many places as it has. With --others two other
schemes run the same searches on the fake server: a thread a question with blocking calls, as the
authors' code does it, and TreeQuest's StandardMCTS in threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import psutil
from fake_server import Times
from omegaconf import DictConfig
from schemes import AGENTS, reward_of, thread_a_question, treequest_in_threads

from toa_exp import __version__, labels
from toa_exp.app import CONF
from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, Score, draw_key, encode
from toa_exp.engines.base import Engine
from toa_exp.job import Job, assemble
from toa_exp.runner import Outcome
from toa_exp.sampler import Counts
from toa_exp.store import Store

SHAPE = (
    "{model_type:llama,hidden_size:8,intermediate_size:16,num_hidden_layers:2,num_attention_heads:2,"
    "vocab_size:32}"
)
PLACES = {"transformers": "max_batch", "vllm": "max_num_seqs"}  # of one agent, by engine


class Cell(NamedTuple):
    """What one line of the result is about."""

    method: str
    problems: int


class Hash:
    """A reward that takes no time."""

    shape = None

    def fingerprint(self) -> Mapping[str, str]:
        return {"reward": "hash"}

    async def score(self, problem: Problem, text: str) -> Score:
        return Score(reward_of(text), 0, 0.0)

    async def close(self) -> None:
        pass


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
    """Seconds of wall, and of processor of this process and its engines', since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), processor_seconds()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, processor_seconds() - self._processor


def processor_seconds() -> float:
    """What this process and those that descend from it, and live, have taken."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def compose(overrides: list[str]) -> DictConfig:
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides)


def given(options: argparse.Namespace, engine: str, url: str, questions: Path, cell: Cell) -> list[str]:
    """The overrides of a run, as `toa-exp run` takes them."""
    run = [f"method={cell.method}", f"budget.samples=[{options.samples}]", f"concurrency={cell.problems}"]
    if engine in PLACES:
        few = [f"~ensemble.agents.{name}" for name in ("ben", "cleo", "dan")[options.agents - 1 :]]
        run += ["task=lab_math", f"task.problems={cell.problems}", "ensemble=lab", *few]
        run += [f"engine={engine}", f"engine.{PLACES[engine]}={options.places // options.agents}"]
        return [*run, *options.overrides]
    model = options.model or "m"
    agents = ",".join(f"{name}:{{model:{model},architecture:{SHAPE}}}" for name in AGENTS[: options.agents])
    run += ["task=jsonl", f"task.path={questions}", f"task.limit={cell.problems}"]
    run += [
        "~ensemble.agents",
        f"+ensemble.agents={{{agents}}}",
        f"ensemble.sampling.max_tokens={options.tokens}",
    ]
    run += ["engine=openai", f"engine.base_url={url}"]
    return [*run, *options.overrides]


async def search(job: Job, folder: Path) -> tuple[list[Draw], tuple[float, float]]:
    """Run the job; returns its draws and what it took."""
    recording = Recording(job.engine)
    job = replace(job, engine=recording)
    (folder / "store.sqlite").unlink(missing_ok=True)
    with closing(Store(folder / "store.sqlite")) as store:
        clock = Clock()
        await job.runner(job.sampler(store, Counts())).run(folder / "trajectories.jsonl", Silent())
        return recording.draws, clock.read()


async def at_once(engine: Engine, draws: list[Draw]) -> tuple[float, float]:
    """Ask for all draws together; what they took."""
    clock = Clock()
    await asyncio.gather(*(engine.sample(draw) for draw in draws))
    return clock.read()


async def measure(config: DictConfig, folder: Path) -> tuple[list[Draw], dict[str, tuple[float, float]]]:
    """Draws, and what the search and all of them at once took, on an engine each that is warm."""
    async with warm(config) as job:
        draws, searched = await search(job, folder)
    async with warm(config) as job:
        return draws, {"search": searched, "at once": await at_once(job.engine, draws)}


@asynccontextmanager
async def warm(config: DictConfig) -> AsyncIterator[Job]:
    """A job whose engine has its models loaded, and has read the first prompt alone."""
    job = replace(assemble(config, []), reward=Hash())
    try:
        await asyncio.gather(*(job.engine.sample(draw) for draw in warm_up(job)))
        yield job
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


def rows(options: argparse.Namespace, engine: str, url: str, folder: Path) -> None:
    """Measure and print, one line a method and number of problems."""
    questions = folder / "questions.jsonl"
    lines = [json.dumps({"id": f"q{n}", "prompt": f"What is {n}?", "reference": str(n)}) for n in range(4096)]
    questions.write_text("\n".join(lines) + "\n")
    rounds = 1 if engine == "fake" else options.rounds
    for problems in options.problems:
        for method in options.methods:
            cell = Cell(method, problems)
            config = compose(given(options, engine, url, questions, cell))
            found: list[dict[str, Any]] = []
            for _ in range(rounds):
                draws, took = asyncio.run(measure(config, folder))
                row: dict[str, Any] = {"engine": engine, "method": method, "problems": problems}
                row |= {"samples": len(draws), "saturation": ratio(took, 0)}
                if engine in PLACES:  # it runs on this machine
                    row["by_processor_time"] = ratio(took, 1)
                if engine == "fake":
                    least = times_of(options).ideal([draw.sampling_seed >> 32 for draw in draws])
                    row["at_once_of_ideal"] = round(least / took["at once"][0], 3)
                    if options.others:
                        row |= others(config, url, method, draws, took["at once"][0])
                print(json.dumps(row), flush=True)
                found.append(row)
            if rounds > 1:
                row = {"engine": engine, "method": method, "problems": problems, "rounds": rounds}
                ratios = [name for name, value in found[0].items() if isinstance(value, float)]
                medians = {name: statistics.median(one[name] for one in found) for name in ratios}
                row |= {f"median_{name}": round(value, 3) for name, value in medians.items()}
                print(json.dumps(row), flush=True)


def ratio(took: Mapping[str, tuple[float, float]], clock: int) -> float:
    return round(took["at once"][clock] / took["search"][clock], 3)


def others(config: DictConfig, url: str, method: str, draws: list[Draw], at_once: float) -> dict[str, float]:
    """What other schemes reach of the rate of all requests at once, with requests that take as long."""
    by_problem: dict[str, list[int]] = {}
    for draw in draws:
        by_problem.setdefault(draw.problem.id, []).append(draw.sampling_seed >> 32)
    seeds = list(by_problem.values())
    found = {"thread_a_question": thread_a_question(config, url, seeds)}
    if method == "toa":
        found["treequest_in_threads"] = treequest_in_threads(url, seeds)
    return {name: round(at_once / seconds, 3) for name, seconds in found.items()}


def times_of(options: argparse.Namespace) -> Times:
    return Times(options.places, options.latency, options.sigma)


@contextmanager
def fake_server(options: argparse.Namespace) -> Iterator[str]:
    """Its URL, while it runs in a process of its own."""
    script = Path(__file__).with_name("fake_server.py")
    settings = [str(value) for value in (options.places, options.latency, options.sigma)]
    with subprocess.Popen([sys.executable, script, *settings], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def signature(options: argparse.Namespace) -> dict[str, object]:
    """What was measured, where."""
    load = [round(value, 1) for value in os.getloadavg()]
    return {**vars(options), "toa-exp": __version__, "python": platform.python_version(),
            "cores": os.cpu_count(), "load": load}  # fmt: skip


def main() -> None:
    options = _options()
    print("signature", json.dumps(signature(options)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engines:
            if engine == "fake":
                with fake_server(options) as url:
                    rows(options, engine, url, Path(folder))
            else:
                rows(options, engine, options.url or "", Path(folder))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How near searches keep an engine to saturation.")
    parser.add_argument("engines", nargs="+", choices=["fake", "transformers", "vllm", "openai"])
    parser.add_argument("--problems", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--methods", nargs="+", default=["toa", "moa"])
    parser.add_argument("--samples", type=int, default=16, help="of a problem")
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="but on the fake server")
    parser.add_argument("--places", type=int, default=64, help="requests that an engine works on at once")
    parser.add_argument(
        "--latency", type=float, default=1.0, help="mean seconds of a request, on the fake server"
    )
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of its seconds")
    parser.add_argument("--others", action="store_true", help="the other schemes too, on the fake server")
    parser.add_argument("--url", help="of the server, up to /v1")
    parser.add_argument("--model", help="that the server has")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most, on a server")
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones of toa-exp run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
