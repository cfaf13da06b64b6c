"""The built-in server of chat completions, on tiny random models."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import openai
import pytest
from aiohttp.test_utils import TestServer
from remote import draw
from tiny_models import causal_model

from toa_exp.core import Usage
from toa_exp.draws import Draw, Sample
from toa_exp.engines.openai import OpenAI
from toa_exp.engines.transformers import Transformers
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput
from toa_exp.serving.chat import Chat, chat_app

SAMPLING = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 12}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Agent]:
    folder = tmp_path_factory.mktemp("models")
    models = {name: causal_model(folder / name, seed=seed) for seed, name in enumerate(("ash", "elm"))}
    return {name: Agent(name, str(path), None, SAMPLING) for name, path in models.items()}


def served(agents: Mapping[str, Agent], work: Callable[[str], Awaitable[object]]) -> object:
    """What `work` gives, which is called with the base URL of a server of the agents."""

    async def main() -> object:
        chat = Chat(agents, lambda members: Transformers(members, device="cpu"))
        server = TestServer(chat_app(chat))
        await server.start_server()
        try:
            return await work(str(server.make_url("/v1")))
        finally:
            await server.close()

    return asyncio.run(main())


async def samples(url: str, agents: Mapping[str, Agent], order: list[int]) -> dict[int, Sample]:
    engine = OpenAI(agents, base_url=url)
    try:
        names = list(agents)
        drawn = await asyncio.gather(*(engine.sample(draw(i, names[i % len(names)])) for i in order))
        return dict(zip(order, drawn, strict=True))
    finally:
        await engine.close()


def test_the_openai_engine_gets_the_same_texts_in_any_order(agents):
    async def work(url: str) -> list[dict[int, Sample]]:
        return [await samples(url, agents, order) for order in ([*range(16)], [*range(15, -1, -1)])]

    one, other = served(agents, work)
    texts = {i: (sample.text, sample.usage) for i, sample in one.items()}
    assert texts == {i: (sample.text, sample.usage) for i, sample in other.items()}
    assert len(set(texts.values())) > 8
    assert all(sample.usage.prompt_tokens > 10 for sample in one.values())


def test_openais_own_client_is_served(agents):
    async def work(url: str) -> list[object]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            model = agents["ash"].model
            ask = {"model": model, "messages": [{"role": "user", "content": "Why?"}], "seed": 3}
            short = await client.chat.completions.create(**ask, max_tokens=2)
            again = await client.chat.completions.create(**ask, max_completion_tokens=2)
            whole = await client.chat.completions.create(**ask)
            listed = [one.id async for one in client.models.list()]
            return [short, again, whole, listed]

    short, again, whole, listed = served(agents, work)
    assert short.choices[0].message.content == again.choices[0].message.content
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    assert whole.choices[0].message.content.startswith(short.choices[0].message.content)
    assert listed == [agent.model for agent in agents.values()]


@pytest.mark.parametrize(
    ("prompt", "written", "limit", "reason"),
    [
        (200, 12, 12, "length"),
        (200, 11, 12, "stop"),
        (200, 56, 128, "length"),  # the window of 256 is full
        (200, 55, 128, "stop"),
        (200, 56, None, "length"),
    ],
)
def test_an_answer_that_is_cut_is_said_to_be(agents, prompt, written, limit, reason):
    class Written:
        async def sample(self, draw: Draw) -> Sample:
            return Sample("text", Usage(prompt, written), 0.1)

    body = {"model": agents["ash"].model, "messages": [{"role": "user", "content": "?"}]}
    chat = Chat(agents, lambda members: Written())
    answer = asyncio.run(chat.complete(body | ({} if limit is None else {"max_tokens": limit})))
    assert answer["choices"][0]["finish_reason"] == reason


def test_a_prompt_over_the_window_is_the_failure_that_it_is_in_process(agents):
    long = draw(0)
    long.messages = [{"role": "user", "content": "x" * 300}]  # the window is 256

    async def work(url: str) -> Sample:
        engine = OpenAI({"ash": agents["ash"]}, base_url=url)
        try:
            return await engine.sample(long)
        finally:
            await engine.close()

    sample = served(agents, work)
    assert (sample.failure, sample.usage) == ("context_window", Usage(0, 0))


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "nobody"}, 404, "does not exist"),
        ({"messages": []}, 400, "one at least"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages is a list"),
        ({"n": 2}, 400, "n above 1"),
        ({"stream": True}, 400, "stream"),
        ({"stop": ["x"]}, 400, "unknown field of the request: 'stop'"),
        ({"temperature": -1}, 400, "temperature is at least 0"),
        ({"temperature": "hot"}, 400, "no number"),
        ({"max_tokens": 0}, 400, "max_tokens at least 1"),
        ({"seed": -1}, 400, "seed=-1"),
        ({"seed": 1.5}, 400, "no integer"),
    ],
)
def test_what_it_does_not_do_it_refuses(agents, fields, status, message):
    async def work(url: str) -> tuple[int, str]:
        import aiohttp

        body = {"model": agents["ash"].model, "messages": [{"role": "user", "content": "?"}], **fields}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/chat/completions", json=body) as response,
        ):
            return response.status, (await response.json())["error"]["message"]

    answered, said = served(agents, work)
    assert answered == status and message in said


def test_a_model_that_cannot_be_loaded_ends_the_server_before_it_listens(tmp_path: Path):
    causal_model(tmp_path, chat=False)
    broken = {"ash": Agent("ash", str(tmp_path), None, SAMPLING)}
    with pytest.raises(BadInput, match=r"agent 'ash': the tokenizer of .* has no chat template"):
        served(broken, lambda _: asyncio.sleep(0))
