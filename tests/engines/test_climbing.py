"""How many requests are under way at servers of so many places, whose times differ as those of answers do."""

import asyncio
from collections import deque
from random import Random
from statistics import median

import pytest
from virtual_time import passing

from toa_exp.engines.climbing import Climb
from toa_exp.engines.endpoints import Endpoint, enter
from toa_exp.engines.limits import Limits

ASKING = 300  # more than any limit


class Places:
    """A server that works on `number` requests at once, each of log-normal seconds; others wait in turn."""

    def __init__(self, seed: int) -> None:
        self._number = self._working = 0
        self.worked = 0.0  # seconds of all requests
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._random = Random(seed)

    def change(self, number: int) -> None:
        """Have another number of places."""
        self._number = number
        self._admit()

    async def answer(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._admit()
        await place
        seconds = self._random.lognormvariate(1.8, 1.0)  # 10 on average
        await asyncio.sleep(seconds)
        self.worked += seconds
        self._working -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._working < self._number:
            self._working += 1
            self._waiting.popleft().set_result(None)


def settle(stages: list[tuple[int, int]], seed: int, start: int = 16) -> list[tuple[float, list[float]]]:
    """Of each stage of so many answers and places: the share of the places' time in use, and the limits."""

    async def work() -> list[tuple[float, list[float]]]:
        loop, server, limits = asyncio.get_running_loop(), Places(seed), []
        endpoint = Endpoint("http://x/v1", Limits(start=start))

        async def asker() -> None:
            while True:
                with await enter([endpoint], 1e9):
                    await server.answer()
                limits.append(endpoint.limit)
                if len(limits) == wanted:
                    enough.set()

        askers = [asyncio.create_task(asker()) for _ in range(ASKING)]
        results = []
        for answers, places in stages:
            wanted, enough, began, worked = answers, asyncio.Event(), loop.time(), server.worked
            server.change(places)
            limits.clear()
            await enough.wait()
            share = (server.worked - worked) / (loop.time() - began) / places
            results.append((share, list(limits)))
        for task in askers:
            task.cancel()
        await asyncio.gather(*askers, return_exceptions=True)
        return results

    return passing(work)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("places", [4, 20, 64])
def test_the_limit_settles_at_a_few_times_the_places_and_costs_little_of_the_rate(places, seed):
    _, (share, limits) = settle([(4000, places), (4000, places)], seed)
    assert share > 0.95
    assert places <= median(limits) <= 4 * places + 4


def test_a_server_of_more_places_than_most_is_left_none_unused():
    _, (share, limits) = settle([(3000, 200), (9000, 200)], 0)
    assert share > 0.95 and median(limits) == 256


def test_a_server_of_few_places_is_not_given_all_that_is_allowed():
    ((_, limits),) = settle([(2000, 4)], 0)
    assert max(limits) <= 140  # before the first trial; 256 of 10 s each would outlast a timeout of 600 s


def test_the_limit_follows_where_the_places_change():
    stages = [(4000, 4), (6000, 200), (4000, 200), (4000, 4), (4000, 4)]
    settled = []
    for seed in range(5):
        few, _, many, _, again = settle(stages, seed)
        for (share, limits), places in ((few, 4), (many, 200), (again, 4)):
            settled.append(share > 0.95 and places <= median(limits[-1000:]) <= 4 * places + 4)
    assert sum(settled) >= 13  # of 15: rates are noisy, and a trial that misleads does so until the next


def test_a_refusal_halves_the_limit_which_then_grows_by_one_per_round():
    climb = Climb(16, 256)
    for number in range(8):
        climb.answered(float(number), 16, in_time=True)
    assert climb.limit == 24
    climb.refused()
    assert climb.limit == 12
    for number in range(12):
        climb.answered(10.0 + number, 12, in_time=True)
    assert 12.9 < climb.limit < 13
    climb.answered(30.0, 12, in_time=False)
    climb.answered(31.0, 3, in_time=True)  # did not put the limit to the test
    assert 12.9 < climb.limit < 13
