"""Engines on a CUDA device, with the lab's models. `make test-gpu` runs these where there is one."""

import asyncio
from collections.abc import Sequence

import pytest
import torch

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines.base import Engine
from toa_exp.engines.transformers import Transformers
from toa_exp.engines.vllm import Vllm
from toa_exp.ensemble import Agent
from toa_exp.labels import LAB_WEIGHTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
SHARE = 0.3  # of the card, for the engines of a test


def agent(name: str, **sampling: object) -> Agent:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 120} | sampling
    return Agent(name, str(LAB_WEIGHTS / "math" / name), None, sampling)


def draws(*names: str) -> list[Draw]:
    made = []
    for text in (f"Q:46{i}-412*9,24*7-65,772%9*7" for i in range(10)):
        messages = [{"role": "user", "content": text}]
        prompt = digest(canonical(messages))
        for name in names:
            asked = digest(name.encode())
            key = draw_key("p", asked, prompt, 0, 0)
            made.append(Draw(key, Problem("p", text), Request(name), messages, asked, prompt, 0, 0))
    return made


async def together(engine: Engine, asked: Sequence[Draw]) -> list[Sample]:
    """The samples of draws that are asked for at once; the engine is closed."""
    try:
        return await asyncio.gather(*map(engine.sample, asked))
    finally:
        await engine.close()


async def in_turn(engine: Engine, asked: Sequence[Draw]) -> list[Sample]:
    """The same, one at a time."""
    try:
        return [await engine.sample(draw) for draw in asked]
    finally:
        await engine.close()


def test_transformers_draws_do_not_depend_on_their_batch():
    def engine() -> Transformers:
        return Transformers({"ada": agent("ada")}, device="cuda", dtype="float32")

    batch, alone = asyncio.run(together(engine(), draws("ada"))), asyncio.run(in_turn(engine(), draws("ada")))
    assert [sample.text for sample in batch] == [sample.text for sample in alone]
    assert len({sample.text for sample in batch}) > 5


def test_transformers_greedy_answers_are_those_of_the_cpu():
    def on(device: str) -> list[Sample]:
        greedy = {"ada": agent("ada", temperature=0.0)}
        return asyncio.run(together(Transformers(greedy, device=device, dtype="float32"), draws("ada")))

    assert [sample.text for sample in on("cuda")] == [sample.text for sample in on("cpu")]


@pytest.fixture(scope="module")
def awake() -> tuple[list[str], int]:
    """The texts of two models of vLLM on one card, and the bytes they took of it."""
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install -e '.[vllm]'")
    taken = 0

    async def sampled() -> list[Sample]:
        nonlocal taken
        before, _ = torch.cuda.mem_get_info(0)
        engine = vllm()
        try:
            samples = await asyncio.gather(*map(engine.sample, draws("ada", "ben")))
            taken = before - torch.cuda.mem_get_info(0)[0]
            return samples
        finally:
            await engine.close()

    return [sample.text for sample in asyncio.run(sampled())], taken


def vllm(**settings: object) -> Vllm:
    agents = {name: agent(name) for name in ("ada", "ben")}
    return Vllm(agents, dtype="float32", gpus=[0], gpu_memory_utilization=SHARE, **settings)


def test_vllm_takes_of_the_card_what_was_planned(awake):
    texts, taken = awake
    assert len(set(texts)) > 10
    assert taken <= 1.05 * SHARE * torch.cuda.mem_get_info(0)[1]


@pytest.mark.parametrize("level", [1, 2])
def test_models_that_sleep_in_turn_give_the_same_texts(awake, level):
    engine = vllm(residents=1, sleep_level=level)
    samples = asyncio.run(together(engine, draws("ada", "ben")))
    assert [sample.text for sample in samples] == awake[0]
    [said] = engine.report()
    assert "ada, ben took turns, 1 awake at a time" in said
