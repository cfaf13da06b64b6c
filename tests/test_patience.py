"""How long a run waits for endpoints, with the settings that it has where none are given."""

import asyncio
import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_endpoint import completion, refusal
from omegaconf import OmegaConf
from remote import agent, draw
from virtual_time import passing

import toa_exp
from toa_exp.draws import Sample
from toa_exp.engines.client import Answer
from toa_exp.engines.endpoints import Late, Refused
from toa_exp.engines.openai import OpenAI
from toa_exp.errors import Permanent, Unavailable
from toa_exp.patience import Patience

CONF = Path(toa_exp.__file__).with_name("conf")
DRAWS = 64
FEW_OR_MANY = pytest.mark.parametrize("number", [1, 4, DRAWS])
Fault = Callable[[], Answer]


def answer(status: int, body: object, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, headers or {}, json.dumps(body).encode())


def no_connection() -> Answer:
    raise Refused("agent 'ash' at http://x/v1 cannot be reached: connection refused")


def hanging() -> Answer:
    raise Late("agent 'ash' at http://x/v1 gave no answer within 600 s")


def error(status: int, headers: dict[str, str] | None = None) -> Fault:
    return lambda: answer(status, refusal("boom").body, headers)


AWAY = [no_connection, *map(error, (429, 503, 502, 504, 520, 524)), error(503, {"Retry-After": "20"})]
BROKEN = [error(500), lambda: answer(200, {"choices": []}), hanging]


class Server:
    """Stands for the client, and is reached in no time; has a fault until `back`, in seconds."""

    def __init__(self, fault: Fault, back: float) -> None:
        self.fault, self.back = fault, back
        self.asked = 0

    async def ask(self, *_: object) -> Answer:
        self.asked += 1
        if asyncio.get_running_loop().time() < self.back:
            return self.fault()
        await asyncio.sleep(1.0)
        return answer(200, completion())


def draws(server: Server, number: int = DRAWS) -> tuple[list[Sample | BaseException], float]:
    """What comes of draws under the default settings, and the seconds that it took."""
    settings = OmegaConf.load(CONF / "engine/openai.yaml")
    fields = {name: value for name, value in settings.items() if name not in ("_target_", "base_url")}
    shared = OmegaConf.load(CONF / "config.yaml")

    async def work() -> tuple[list[Sample | BaseException], float]:
        engine = OpenAI({"ash": agent()}, base_url="http://x/v1", **fields)
        engine._client = server  # type: ignore[assignment]
        patience = Patience(shared.retries, shared.backoff, lambda: None)
        asked = [patience(engine.sample, draw(i)) for i in range(number)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        return results, asyncio.get_running_loop().time()

    return passing(work)  # type: ignore[return-value]


@FEW_OR_MANY
@pytest.mark.parametrize("fault", AWAY)
def test_a_server_that_is_away_for_minutes_is_waited_for(fault, number):
    server = Server(fault, back=500.0)
    results, seconds = draws(server, number)
    assert all(isinstance(result, Sample) for result in results)
    assert 500 < seconds < 620
    assert server.asked < 2 * DRAWS


@FEW_OR_MANY
@pytest.mark.parametrize("fault", AWAY)
def test_a_server_that_stays_away_is_given_up_after_the_longest_wait(fault, number):
    server = Server(fault, back=1e9)
    results, seconds = draws(server, number)
    for result in results:
        assert type(result) is Permanent and "more than engine.longest_wait=600; run again" in str(result)
    assert 600 < seconds < 720
    assert server.asked < DRAWS


@pytest.mark.parametrize("fault", BROKEN)
def test_a_server_that_is_there_but_broken_ends_after_the_retries(fault):
    results, seconds = draws(Server(fault, back=1e9))
    assert all(isinstance(result, Unavailable) and "longest_wait" not in str(result) for result in results)
    assert seconds < 200  # the retries, and the pauses of a server that fails


@pytest.mark.parametrize(("status", "after"), [(500, 0.0), (502, 3.0), (504, 60.0), (524, 100.0)])
def test_a_prompt_that_breaks_the_server_ends_after_the_retries_while_others_are_answered(status, after):
    one_by_one = asyncio.Lock()

    class Picky(Server):
        async def ask(self, *given: object) -> Answer:
            self.asked += 1
            seed = json.loads(given[1])["seed"]
            if seed == draw(3).sampling_seed >> 32:
                await asyncio.sleep(after)
                return error(status)()
            async with one_by_one:
                await asyncio.sleep(10.0)
                return await super().ask(*given)

    results, _ = draws(Picky(hanging, back=0.0))
    failed = [number for number, result in enumerate(results) if not isinstance(result, Sample)]
    assert failed == [3] and f"{status}: boom" in str(results[3])
    assert "longest_wait" not in str(results[3])


def test_what_failed_is_let_go_of_before_the_wait():
    held, kept = [], []

    async def fail() -> None:
        memory = Server(hanging, 0.0)
        held.append(weakref.ref(memory))
        raise Unavailable("it is full")

    async def run() -> None:
        patience = Patience(2, 0.0, lambda: kept.append(held[-1]() is not None))
        await patience(fail)

    with pytest.raises(Unavailable, match="it is full"):
        asyncio.run(run())
    assert kept == [False, False]


def test_what_many_requests_fail_with_is_warned_of_once(caplog):
    failing = set(range(20))

    async def ask(number: int) -> int:
        if number in failing:
            failing.discard(number)
            raise Refused("it is away") if number % 2 else Unavailable("it broke")
        return number

    async def run() -> list[int]:
        patience = Patience(1, 0.0, lambda: None)
        return await asyncio.gather(*(patience(ask, number) for number in range(20)))

    with caplog.at_level(logging.INFO):
        assert asyncio.run(run()) == list(range(20))
    assert len(caplog.messages) == 20
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["it broke; trying again in 0.0 s", "it is away; it is waited for"]
