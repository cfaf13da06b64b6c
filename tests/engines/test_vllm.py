"""vLLM itself, on the lab's models: its CPU build will do. `make test-vllm` installs it and runs these."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines.openai import OpenAI
from toa_exp.engines.transformers import Transformers
from toa_exp.engines.vllm import Vllm
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Unavailable
from toa_exp.labels import LAB_WEIGHTS
from toa_exp.rewards.classifier import Classifier
from toa_exp.rewards.vllm_classifier import VllmClassifier

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm.engine.arg_utils")
psutil = pytest.importorskip("psutil")

MATH = LAB_WEIGHTS / "math"
PROBLEMS = [f"Q:46{i}-412*9,24*7-65,772%9*7" for i in range(12)]


def agent(name: str, model: str = "ada", folder: Path = MATH, **sampling: object) -> Agent:
    return Agent(
        name, str(folder / model), None, {"temperature": 1.0, "top_p": 1.0, "max_tokens": 120} | sampling
    )


def draw(text: str, occurrence: int = 0, name: str = "ada") -> Draw:
    messages = [{"role": "user", "content": text}]
    asked, prompt = digest(name.encode()), digest(canonical(messages))
    key = draw_key("p", asked, prompt, occurrence, 0)
    return Draw(key, Problem("p", text), Request(name), messages, asked, prompt, occurrence, 0)


class Loop:
    """An event loop that outlives a test, and engines in it."""

    def __init__(self, runner: asyncio.Runner, **settings: object) -> None:
        self.agents = {
            member.name: member
            for member in (
                agent("ada"),
                agent("greedy", temperature=0.0),
                agent("nucleus", top_p=0.8, extra_body={"top_k": 5}),
            )
        }
        self.engine = Vllm(self.agents, **settings)
        self._runner = runner

    def run(self, coroutine: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await coroutine

        return self._runner.run(wait())

    def samples(self, draws: Sequence[Draw]) -> list[Any]:
        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*map(self.engine.sample, draws), return_exceptions=True)

        return self._runner.run(all_at_once())


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with asyncio.Runner() as runner:
        made = Loop(runner)
        yield made
        runner.run(made.engine.close())


def texts(samples: Sequence[Any]) -> list[str]:
    for sample in samples:
        if isinstance(sample, BaseException):
            raise sample
    return [sample.text for sample in samples]


def test_a_draw_gives_the_same_text_alone_and_in_every_batch(loop):
    draws = [draw(text, i, name) for i in range(4) for text in PROBLEMS for name in ("ada", "nucleus")]
    together = loop.samples(draws)
    assert len(set(texts(together))) > 60
    order = Random(0).sample(range(len(draws)), len(draws))
    shuffled = loop.samples([draws[i] for i in order])
    assert texts(shuffled) == [together[i].text for i in order]
    alone = [loop.samples([one])[0] for one in draws[:10]]
    assert texts(alone) == texts(together[:10])
    assert [sample.usage for sample in alone] == [sample.usage for sample in together[:10]]
    assert all(sample.seconds > 0 for sample in together)


def test_prompts_answers_and_counts_are_those_of_the_transformers_engine(loop):
    draws = [draw(text, 0, "greedy") for text in PROBLEMS]

    async def others() -> list[Sample]:
        engine = Transformers({"greedy": loop.agents["greedy"]}, device="cpu", dtype="float32")
        try:
            return await asyncio.gather(*map(engine.sample, draws))
        finally:
            await engine.close()

    ours, theirs = loop.samples(draws), loop.run(others())
    assert texts(ours) == texts(theirs)
    assert [sample.usage for sample in ours] == [sample.usage for sample in theirs]


def test_the_window_bounds_prompt_and_answer(loop):
    around = loop.samples([draw("")])[0].usage.prompt_tokens
    short, long = loop.samples([draw("1" * (1024 - around - 3)), draw("1" * 1024)])
    assert short.failure is None and 1 <= short.usage.completion_tokens <= 3
    assert (long.text, long.failure) == ("", "context_window")
    assert long.usage == type(long.usage)(0, 0)


def test_an_engine_that_died_is_started_again_and_gives_the_same_text(loop):
    [before] = loop.samples([draw(PROBLEMS[0])])
    children = psutil.Process().children(recursive=True)
    [core] = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    core.kill()
    results = loop.samples([draw(PROBLEMS[0], i) for i in range(3)])
    assert all(isinstance(result, Unavailable) and "agent 'ada'" in str(result) for result in results)
    assert texts(loop.samples([draw(PROBLEMS[0])])) == [before.text]


def test_models_that_take_turns_give_the_same_texts(loop):
    agents = {"ada": agent("ada"), "ben": agent("ben", "ben")}
    draws = [draw(text, i, name) for i in range(2) for text in PROBLEMS for name in agents]

    async def by_turns() -> tuple[list[Sample], list[str]]:
        engine = Vllm(agents, residents=1)
        try:
            return await asyncio.gather(*map(engine.sample, draws)), engine.report()
        finally:
            await engine.close()

    taken, [said] = loop.run(by_turns())
    assert texts(taken[::2]) == texts(loop.samples(draws[::2]))
    assert len(set(texts(taken))) > 12
    assert "ada, ben took turns, 1 awake at a time: 1 swaps took" in said


def test_the_pooling_runner_gives_the_classifiers_scores(loop):
    problem = Problem("p", PROBLEMS[0])
    answers = texts(loop.samples([draw(PROBLEMS[0], i) for i in range(20)]))

    async def scores(reward: Any) -> list[Any]:
        try:
            return await asyncio.gather(
                *(reward.score(problem, text) for text in [*answers, "1" * 1100]), return_exceptions=True
            )
        finally:
            await reward.close()

    ours = VllmClassifier(model=str(MATH / "judge"))
    theirs = Classifier(model=str(MATH / "judge"), device="cpu")
    assert ours.fingerprint() == theirs.fingerprint()
    *got, long = loop.run(scores(ours))
    *expected, too_long = loop.run(scores(theirs))
    assert [score.reward for score in got] == pytest.approx([score.reward for score in expected], abs=2e-4)
    assert max(score.reward for score in got) - min(score.reward for score in got) > 0.1
    assert [score.tokens for score in got] == [score.tokens for score in expected]
    assert str(long) == str(too_long)


def test_what_cannot_be_run_is_told_with_the_agents_name(loop, tmp_path):
    shutil.copytree(MATH / "ada", tmp_path / "bare")
    for path in (tmp_path / "bare").glob("chat_template*"):
        path.unlink()
    cases = {
        "chat template": (agent("cleo", "bare", tmp_path), {}),
        "max_modle_len": (agent("cleo"), {"arguments": {"max_modle_len": 3}}),
        "vLLM cannot run": (agent("cleo"), {"arguments": {"load_format": "no such format"}}),
    }

    async def ask(member: Agent, settings: dict[str, Any]) -> Any:
        engine = Vllm({"cleo": member}, **settings)
        try:
            return await asyncio.gather(engine.sample(draw("Q:1+1", 0, "cleo")), return_exceptions=True)
        finally:
            await engine.close()

    for message, (member, settings) in cases.items():
        [error] = loop.run(ask(member, settings))
        assert isinstance(error, BadInput), error
        assert "agent 'cleo'" in str(error) and message in str(error)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of vLLM's own server with ada."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MATH / "ada"),
        "--served-model-name", "ada", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1",
        "--port", str(port), "--max-num-batched-tokens", "65536", "--no-enable-chunked-prefill",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def served(loop: Loop, server: str, draws: Sequence[Draw]) -> list[Sample]:
    """The samples that the server gives to engine=openai."""
    member = Agent("ada", "ada", None, loop.agents["ada"].sampling, architecture={})

    async def ask() -> list[Sample]:
        engine = OpenAI({"ada": member}, base_url=server)
        try:
            return await asyncio.gather(*map(engine.sample, draws))
        finally:
            await engine.close()

    return loop.run(ask())


def test_a_server_gives_the_same_texts_to_the_openai_engine(loop, server):
    draws = [draw(text, i) for i in range(2) for text in PROBLEMS]
    theirs, ours = served(loop, server, draws), loop.samples(draws)
    assert texts(theirs) == texts(ours)
    assert [sample.usage for sample in theirs] == [sample.usage for sample in ours]


def test_a_servers_window_bounds_prompt_and_answer_as_in_process(loop, server):
    around = loop.samples([draw("")])[0].usage.prompt_tokens
    lengths = [1024 - around - room for room in (120, 3, 1, 0)] + [1024, 4096]
    draws = [draw("1" * length) for length in lengths]
    theirs, ours = served(loop, server, draws), loop.samples(draws)
    assert texts(theirs) == texts(ours)
    assert [sample.failure for sample in theirs] == [None] * 3 + ["context_window"] * 3
    assert [sample.failure for sample in ours] == [sample.failure for sample in theirs]
    assert [sample.usage for sample in theirs] == [sample.usage for sample in ours]
