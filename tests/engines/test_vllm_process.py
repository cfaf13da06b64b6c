"""How vLLM is called, on a stand-in for it: what needs GPUs in truth can be followed here."""

import asyncio
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeLLM, Params, install
from tiny_models import causal_model

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines import vllm_process
from toa_exp.engines.loading import ENVIRONMENT, ONE_AT_A_TIME
from toa_exp.engines.seats import GIB, Gpu
from toa_exp.engines.vllm import Vllm
from toa_exp.engines.vllm_environment import environment
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Unavailable

SIZE = 24 * GIB


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    return install(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["ash", "elm", "oak"]):
        causal_model(folder / name, seed=seed)
    return folder


def agents(folder: Path, *names: str, **options: Any) -> dict[str, Agent]:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 40}
    return {name: Agent(name, str(folder / name), None, sampling, options=options) for name in names}


def draw(name: str, text: str = "Hello", occurrence: int = 0) -> Draw:
    messages = [{"role": "user", "content": text}]
    asked, prompt = digest(name.encode()), digest(canonical(messages))
    key = draw_key("p", asked, prompt, occurrence, 0)
    return Draw(key, Problem("p", text), Request(name), messages, asked, prompt, occurrence, 0)


def sample(engine: Vllm, *draws: Draw, gpus: int = 0) -> list[Any]:
    there = [Gpu(index, "a GPU", SIZE, SIZE) for index in range(gpus)]

    async def run() -> list[Any]:
        await asyncio.to_thread(engine.ground.plan, lambda: there)
        try:
            return await asyncio.gather(*map(engine.sample, draws), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


def test_every_model_is_started_on_its_gpus_with_its_share(fake, folder):
    engine = Vllm(agents(folder, "ash", "elm", "oak", arguments={"kv_cache_dtype": "fp8"}))
    made = sample(engine, draw("ash"), draw("elm"), draw("oak"), gpus=2)
    assert [one.text for one in made] == ["ab"] * 3
    assert [one.usage.completion_tokens for one in made] == [3] * 3
    shares: dict[int, float] = {0: 0.0, 1: 0.0}
    for one in fake.made:
        [gpu] = one.arguments.device_ids
        shares[gpu] += one.arguments.gpu_memory_utilization
        assert one.arguments.kv_cache_dtype == "fp8" and not one.arguments.enable_sleep_mode
        assert one.arguments.enable_chunked_prefill is None  # nothing of a CPU's
        assert one.told == ["shut down"]
        assert one.arguments.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
        assert one.arguments.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert shares == pytest.approx({0: 0.9, 1: 0.9}, abs=1e-6)
    assert "VLLM_NO_USAGE_STATS" not in os.environ


def test_engines_that_start_together_all_find_their_environment(monkeypatch):
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    before = dict(os.environ)
    first, second = environment(cpu=False, engines=2), environment(cpu=False, engines=2)
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
        assert os.environ["VLLM_NO_USAGE_STATS"] == "0"  # the user's word
        os.environ["VLLM_SETS_THIS"] = "1"
    assert dict(os.environ) == before


@pytest.mark.parametrize("held", [ONE_AT_A_TIME, ENVIRONMENT], ids=["loads", "makes tokens"])
def test_the_environment_does_not_change_while_somebody_reads_it(held):
    entered = threading.Event()

    def start():
        with environment(cpu=False, engines=1):
            entered.set()

    starter = threading.Thread(target=start)
    with held:
        starter.start()
        assert not entered.wait(0.2)
        assert "VLLM_NO_USAGE_STATS" not in os.environ
    starter.join()
    assert entered.is_set()


def test_on_a_cpu_the_settings_are_those_that_are_safe_there(fake, folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    [made] = sample(Vllm(agents(folder, "ash")), draw("ash"))
    assert made.text == "ab"
    arguments = fake.made[0].arguments
    assert (arguments.dtype, arguments.enable_chunked_prefill, arguments.enforce_eager) == (
        "float32", False, True,
    )  # fmt: skip
    assert arguments.device_ids is None and arguments.kv_cache_memory_bytes == GIB
    assert arguments.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert int(arguments.environment["OMP_NUM_THREADS"]) >= 1
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": [0]}, r"agent 'ash': gpus=\[0\], and there are none on this machine"),
        (
            {"tensor_parallel_size": 3},
            "agent 'ash': tensor_parallel_size=3 does not divide the 4 attention heads",
        ),
    ],
)
def test_settings_that_a_cpu_cannot_keep_are_told(options, message, fake, folder):
    [error] = sample(Vllm(agents(folder, "ash", **options)), draw("ash"))
    assert isinstance(error, BadInput) and re.search(message, str(error)) and not fake.made


def test_a_model_that_is_split_on_a_cpu_is_warned_of(fake, folder, caplog):
    [made] = sample(Vllm(agents(folder, "ash", tensor_parallel_size=2)), draw("ash"))
    assert made.text == "ab"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert "agent 'ash': tensor_parallel_size=2, and no GPU is visible" in warned[0]
    caplog.clear()
    sample(Vllm(agents(folder, "ash", tensor_parallel_size=2)), draw("ash"), gpus=2)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_seeds_are_those_that_the_openai_engine_sends(fake, folder):
    draws = [draw("ash", occurrence=i) for i in range(3)]
    sample(Vllm(agents(folder, "ash")), *draws)
    assert sorted(fake.made[0].seeds) == sorted(one.sampling_seed >> 32 for one in draws)


@pytest.mark.parametrize(("level", "waking"), [(1, [("wake", None)]), (2, None)])
def test_on_a_gpu_those_that_take_turns_sleep_and_wake(fake, folder, level, waking):
    engine = Vllm(agents(folder, "ash", "elm"), residents=1, sleep_level=level)

    async def run() -> list[Sample]:
        await asyncio.to_thread(engine.ground.plan, lambda: [Gpu(0, "a GPU", SIZE, SIZE)])
        made = [await engine.sample(draw(name)) for name in ("ash", "elm", "ash")]
        assert "2 swaps" in engine.report()[0]
        await engine.close()
        return made

    assert [one.text for one in asyncio.run(run())] == ["ab"] * 3
    ash, elm = fake.made
    assert ash.arguments.enable_sleep_mode and elm.arguments.enable_sleep_mode
    waking = waking or [("wake", ["weights"]), "reload_weights", ("wake", ["kv_cache"])]
    assert ash.told == [("sleep", level), "asleep", *waking, "shut down"]
    assert elm.told == [("sleep", level), "asleep", "shut down"]
    assert ash.arguments.gpu_memory_utilization > 0.8


def test_sleepers_that_do_not_fit_into_the_machine_are_told_before_anything_is_started(
    fake, folder, monkeypatch
):
    monkeypatch.setattr("toa_exp.engines.vllm.main_memory", lambda: 10)
    given = agents(folder, "ash", "elm")
    errors = sample(Vllm(given, residents=1), draw("ash"), gpus=1)
    assert isinstance(errors[0], BadInput) and "give engine.sleep_level=2" in str(errors[0])
    assert not fake.made
    assert sample(Vllm(given, residents=1, sleep_level=2), draw("ash"), gpus=1)[0].text == "ab"
    assert sample(Vllm(given), draw("ash"), gpus=1)[0].text == "ab"


def test_on_a_cpu_those_that_take_turns_end_and_are_started_again(fake, folder):
    engine = Vllm(agents(folder, "ash", "elm"), residents=1)

    async def run() -> None:
        await asyncio.to_thread(engine.ground.plan, lambda: [])
        for name in ("ash", "elm", "ash"):
            await engine.sample(draw(name))
        await engine.close()

    asyncio.run(run())
    assert [Path(one.arguments.model).name for one in fake.made] == ["ash", "elm", "ash"]
    assert all(one.told == ["shut down"] for one in fake.made)


def test_an_engine_that_ends_unasked_takes_that_for_no_fault(fake, folder):
    asked, unasked = agents(folder, "ash"), agents(folder, "ash", max_model_len=1)
    assert sample(Vllm(asked), draw("ash"))[0].text == "ab"
    assert sample(Vllm(unasked), draw("ash"))[0].failure == "context_window"
    assert [one.told for one in fake.made] == [["shut down"], ["shut down"]]


def test_what_the_import_of_vllm_keeps_keeps_no_engine(fake, folder, monkeypatch):
    frames: list[Any] = []
    monkeypatch.setattr(vllm_process, "check_vllm", lambda: frames.append(sys._getframe()))
    sample(Vllm(agents(folder, "ash")), draw("ash"))
    (frame,) = frames
    while frame is not None:
        assert not any(isinstance(value, FakeLLM) for value in frame.f_locals.values())
        frame = frame.f_back


def test_a_dead_engine_is_started_again(fake, folder):
    engine = Vllm(agents(folder, "ash"))

    async def run() -> list[Any]:
        await asyncio.to_thread(engine.ground.plan, lambda: [])
        await engine.sample(draw("ash"))
        fake.made[0].errored = True
        told = await asyncio.gather(engine.sample(draw("ash")), return_exceptions=True)
        fake.failing.append(RuntimeError("still no memory"))
        told += await asyncio.gather(engine.sample(draw("ash")), return_exceptions=True)
        told.append(await engine.sample(draw("ash")))
        await engine.close()
        return told

    dead, again, alive = asyncio.run(run())
    assert isinstance(dead, Unavailable) and "agent 'ash'" in str(dead) and "died" in str(dead)
    assert isinstance(again, Unavailable) and "still no memory" in str(again)
    assert alive.text == "ab"


def test_an_engine_is_started_again_when_the_dead_one_has_ended(fake, folder, monkeypatch):
    log: list[str] = []

    class Noted:
        def __init__(self) -> None:
            self.number = len(fake.made)
            log.append(f"guard {self.number}")

        def settled(self) -> None:
            log.append(f"{self.number} runs")

        def close(self) -> None:
            log.append(f"guard {self.number} ends")

    def shut_down(llm: FakeLLM, timeout: float) -> None:
        log.append("shuts down")
        time.sleep(0.1)
        log.append("is down")

    monkeypatch.setattr(vllm_process, "Guard", Noted)
    monkeypatch.setattr(FakeLLM, "shutdown", shut_down)
    engine = Vllm(agents(folder, "ash"))

    async def run() -> list[Any]:
        await asyncio.to_thread(engine.ground.plan, lambda: [])
        await engine.sample(draw("ash"))
        fake.made[0].errored = True
        dead = asyncio.create_task(engine.sample(draw("ash")))
        while log[-1] != "shuts down":
            await asyncio.sleep(0.01)
        told = [await engine.sample(draw("ash"))]
        told += await asyncio.gather(dead, return_exceptions=True)
        await engine.close()
        return told

    alive, dead = asyncio.run(run())
    assert alive.text == "ab" and isinstance(dead, Unavailable)
    ends = ["shuts down", "is down"]
    assert log == ["guard 0", "0 runs", *ends, "guard 0 ends", "guard 1", "1 runs", *ends, "guard 1 ends"]


def test_a_model_that_vllm_cannot_run_is_bad_input_for_all_who_ask(fake, folder):
    fake.failing.append(ValueError("1 validation error\n  the model is too long"))
    errors = sample(Vllm(agents(folder, "ash")), draw("ash"), draw("ash", occurrence=1))
    for error in errors:
        assert isinstance(error, BadInput)
        assert "agent 'ash'" in str(error) and "the model is too long" in str(error)


def test_arguments_that_vllm_does_not_know_are_told_with_those_it_does(fake, folder):
    engine = Vllm(agents(folder, "ash", arguments={"enforce_eagre": True}))
    [error] = sample(engine, draw("ash"))
    assert isinstance(error, BadInput) and "Did you mean 'enforce_eager'" in str(error)


def test_an_answer_that_was_broken_off_is_no_sample(fake, folder, monkeypatch):
    monkeypatch.setattr(Params, "finish", "abort")
    [error] = sample(Vllm(agents(folder, "ash")), draw("ash"))
    assert isinstance(error, Unavailable) and "'abort'" in str(error)


def test_what_does_not_fit_is_told_before_anything_is_started(fake, folder):
    engine = Vllm(agents(folder, "ash", tensor_parallel_size=2))

    async def run() -> None:
        await asyncio.to_thread(engine.ground.plan, lambda: [Gpu(0, "a GPU", SIZE, SIZE)])

    with pytest.raises(BadInput, match="ash does not fit"):
        asyncio.run(run())
    assert not fake.made
