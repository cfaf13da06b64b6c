"""What refusals and outages cost of a server's rate, and how near to a real limit a run comes."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from test_climbing import ASKING, Places
from virtual_time import passing

from toa_exp.engines.climbing import Climb
from toa_exp.engines.endpoints import Away, Endpoint, Refused, enter
from toa_exp.engines.limits import Limits
from toa_exp.patience import Patience

Errors = Callable[[], Exception | None]


class Refusing(Places):
    """Refuses what `error` has an error for; counts what it answers and refuses."""

    def __init__(self, seed: int, places: int, error: Errors = lambda: None) -> None:
        super().__init__(seed)
        self.change(places)
        self.error = error
        self.under_way = self.answered = self.refused = 0

    async def answer(self) -> None:
        if (error := self.error()) is not None:
            self.refused += 1
            raise error
        self.under_way += 1
        await super().answer()
        self.under_way -= 1
        self.answered += 1


def ask(server: Refusing, script: Callable[[Endpoint], Awaitable[object]], start: int = 16) -> object:
    """What a script gives that watches an endpoint, of which more is asked than it takes."""

    async def work() -> object:
        endpoint, patience = Endpoint("http://x/v1", Limits(start=start)), Patience(5, 1.0, lambda: None)

        async def one() -> None:
            with await enter([endpoint], 1e9):
                await server.answer()

        async def asker() -> None:
            while True:
                await patience(one)

        askers = [asyncio.create_task(asker()) for _ in range(ASKING)]
        try:
            return await script(endpoint)
        finally:
            for task in askers:
                task.cancel()
            await asyncio.gather(*askers, return_exceptions=True)

    return passing(work)


async def shares(server: Refusing, places: int, minutes: int) -> list[float]:
    """Of each minute from now on: the share of the places' time in use."""
    made = []
    for _ in range(minutes):
        before = server.worked
        await asyncio.sleep(60)
        made.append((server.worked - before) / 60 / places)
    return made


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("places", [64, 200])
@pytest.mark.parametrize("error", [Away("no"), Refused("no")])
def test_a_server_that_was_away_soon_has_its_rate_again(error, places):
    server = Refusing(0, places)

    async def script(endpoint: Endpoint) -> list[float]:
        await asyncio.sleep(600)
        server.error = lambda: error
        await asyncio.sleep(90)
        assert endpoint.limit < 16
        server.error = lambda: None
        return await shares(server, places, 6)

    after = ask(server, script)
    assert mean(after[2:]) > 0.8


@pytest.mark.parametrize("refusals", [1, 3])
@pytest.mark.parametrize(
    ("places", "phase"),
    [(64, "START"), (64, "HOLD"), (200, "HOLD"), (64, "QUARTER"), (200, "QUARTER"), (64, "DOUBLE")],
)
def test_a_few_refusals_cost_little_of_the_rate_in_whatever_phase_they_come(phase, places, refusals):
    left = refusals
    server = Refusing(1, places)

    def few() -> Exception | None:
        nonlocal left
        left -= 1
        return Refused("no") if left >= 0 else None

    async def script(endpoint: Endpoint) -> list[float]:
        await asyncio.sleep(20 if phase == "START" else 900)
        while endpoint._climb._phase.name != phase:
            await asyncio.sleep(1)
        server.error = few
        return await shares(server, places, 6)

    after = ask(server, script)
    assert server.refused == refusals
    assert mean(after[2:]) > 0.8


def test_refusals_by_chance_leave_the_rate_as_it_is():
    chance = Random(0)
    server = Refusing(0, 200, lambda: Refused("no") if chance.random() < 0.001 else None)
    after = ask(server, lambda _: shares(server, 200, 30))
    assert server.refused > 20 and mean(after[10:]) > 0.85


@pytest.mark.parametrize("number", [6, 64, 150])
def test_a_limit_on_requests_at_once_is_come_near_to_without_a_storm(number):
    server = Refusing(0, 1000)
    server.error = lambda: Refused("no") if server.under_way >= number else None
    after = ask(server, lambda _: shares(server, number, 60))
    assert mean(after[10:]) > 0.65
    assert server.refused < 0.1 * server.answered


@pytest.mark.parametrize("number", [60, 600])
def test_a_limit_on_requests_a_minute_is_come_near_to_without_a_storm(number):
    tokens, at = float(number), 0.0

    def bucket() -> Exception | None:
        nonlocal tokens, at
        now = asyncio.get_running_loop().time()
        tokens, at = min(number, tokens + (now - at) * number / 60), now
        if tokens < 1:
            return Refused("no")
        tokens -= 1
        return None

    server = Refusing(0, 1000, bucket)
    ask(server, lambda _: asyncio.sleep(3600))
    assert server.answered > 0.85 * 60 * number
    assert server.refused < 0.1 * server.answered


def grown(limit: int) -> Climb:
    """One that grew to `limit` and was not refused."""
    climb = Climb(16, 256)
    for number in range(limit - 16):
        climb.answered(number / 100, int(climb.limit), in_time=True)
    assert climb.limit == limit
    return climb


@pytest.mark.parametrize(("away", "regained"), [(False, 32.0), (True, 64.0)])
def test_after_a_row_of_refusals_the_limit_grows_by_one_an_answer_up_to_what_it_was(away, regained):
    climb = grown(64)
    climb._hold(64.0)
    climb.refused()
    for _ in range(5):
        climb.refused(away=away, again=True)
    assert climb.limit == 1
    limits = []
    for number in range(60):
        climb.answered(10.0 + number, int(climb.limit), in_time=True)
        limits.append(climb.limit)
    assert limits[:3] == [16, 17, 18]
    grew = int(regained) - 16
    assert limits[grew] == regained
    assert regained <= limits[-1] < regained + 2


def test_a_refusal_during_a_trial_is_none_of_the_limit_before():
    climb = grown(64)
    climb._hold(64.0)
    climb._next = type(climb._phase)["DOUBLE"]
    climb._try()
    assert climb.limit == 128
    climb.refused()
    assert climb.limit == 64
