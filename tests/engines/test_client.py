"""What a host that cannot be reached is told as: where it never was, a mistake, else a time without it."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
from fake_endpoint import Endpoint, serving
from remote import OK, agent, draw

from toa_exp.engines.endpoints import Away
from toa_exp.engines.openai import OpenAI
from toa_exp.errors import BadInput
from toa_exp.rewards.http import HTTP

OWN = {"base_url": "http://nowhere.example/v1"}


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with serving(lambda _: OK) as made:
        yield made


def unknown(monkeypatch: pytest.MonkeyPatch, number: int = socket.EAI_NONAME) -> None:
    """Have no name known from now on."""

    def look_up(*_: object, **__: object) -> object:
        raise socket.gaierror(number, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


async def asked(engine: OpenAI) -> object:
    (result,) = await asyncio.gather(engine.sample(draw()), return_exceptions=True)
    await engine.close()
    return result


@pytest.mark.parametrize(
    ("options", "setting"), [({}, "engine.base_url"), (OWN, "ensemble.agents.ash.options.base_url")]
)
def test_a_name_that_nobody_knows_is_a_mistake(options, setting, monkeypatch):
    unknown(monkeypatch)
    failed = asyncio.run(asked(OpenAI({"ash": agent(options=options)}, base_url="http://nowhere.example/v1")))
    assert isinstance(failed, BadInput)
    assert "agent 'ash' at http://nowhere.example/v1 cannot be reached" in str(failed)
    assert f"Mend {setting}" in str(failed)


def test_no_encryption_where_some_is_expected_is_a_mistake():
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def work() -> object:
        server = await asyncio.start_server(plain, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await asked(OpenAI({"ash": agent()}, base_url=f"https://127.0.0.1:{port}/v1"))
        finally:
            server.close()

    failed = asyncio.run(work())
    assert isinstance(failed, BadInput) and "Mend engine.base_url, or name the file" in str(failed)


def test_a_name_that_was_known_or_cannot_be_looked_up_is_waited_for(server, monkeypatch):
    async def work() -> list[object]:
        engine = OpenAI({"ash": agent()}, base_url=server.url.replace("127.0.0.1", "localhost"))
        there = await asked(engine)
        unknown(monkeypatch)
        gone = await asked(engine)
        passing = []
        for number in (socket.EAI_AGAIN, socket.EAI_FAIL):
            unknown(monkeypatch, number)
            passing.append(await asked(OpenAI({"ash": agent()}, base_url="http://nowhere.example/v1")))
        return [there, gone, *passing]

    there, *waited = asyncio.run(work())
    assert there.text == "4"
    for failed in waited:
        assert isinstance(failed, Away) and "or mend engine.base_url" in str(failed)


def test_the_setting_of_a_reward_is_named(monkeypatch):
    async def work() -> object:
        reward = HTTP(model="m", base_url="http://nowhere.example")
        (failed,) = await asyncio.gather(reward.score(draw().problem, "4"), return_exceptions=True)
        await reward.close()
        return failed

    unknown(monkeypatch)
    failed = asyncio.run(work())
    assert isinstance(failed, BadInput) and "Mend reward.base_url" in str(failed)
