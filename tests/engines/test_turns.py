"""Time sharing, on engines that take time by a clock of their own."""

import asyncio
from collections import Counter
from random import Random

import pytest
from helpers import ToyEngine, run
from virtual_time import passing

from toa_exp.draws import Draw, Sample
from toa_exp.engines.turns import Turns
from toa_exp.errors import Unavailable
from toa_exp.methods.toa import toa


class Room:
    """Models of which `awake` fit; being asked while asleep, or waking where there is no room, fails."""

    def __init__(
        self, names: str, awake: int = 1, cost: float = 5.0, start: float | None = None, **settings: float
    ) -> None:
        self.awake: set[str] = set()
        self.under_way: Counter[str] = Counter()
        self.log: list[tuple[float, str, str]] = []
        self.turns = Turns(names, awake, self.wake, self.sleep, **settings)
        self._places = awake
        self._cost = cost
        self._start = cost if start is None else start

    async def wake(self, name: str) -> None:
        assert len(self.awake) < self._places and name not in self.awake
        await asyncio.sleep(self._cost if name in self.woken else self._start)
        self.awake.add(name)
        self.note("wake", name)

    async def sleep(self, name: str) -> None:
        assert not self.under_way[name] and name in self.awake
        self.awake.remove(name)
        await asyncio.sleep(self._cost)

    async def ask(self, name: str, seconds: float = 1.0) -> str:
        async with self.turns.turn(name):
            assert name in self.awake
            self.under_way[name] += 1
            await asyncio.sleep(seconds)
            self.under_way[name] -= 1
        self.note("done", name)
        return name

    def note(self, what: str, name: str) -> None:
        self.log.append((asyncio.get_running_loop().time(), what, name))

    @property
    def woken(self) -> str:
        return "".join(name for _, what, name in self.log if what == "wake")


def test_requests_wait_for_the_turn_of_their_model_and_run_together():
    room = Room("ab")

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(room.ask(name) for name in "ab" * 50))

    assert passing(ask_all) == list("ab" * 50)
    assert room.woken == "ab"
    assert room.turns.swaps == 1
    assert room.turns.swap_seconds == pytest.approx(10.0)
    assert room.log[-1][0] == pytest.approx(5 + 1 + 10 + 1)  # all of a model at once
    assert "1 swaps took 10.0 s, 58.8% of 17.0 s" in room.turns.report()


def test_a_model_with_nothing_to_do_makes_room_at_once():
    room = Room("ab", cost=100.0)

    async def one_after_the_other() -> None:
        for name in "aabb":
            await room.ask(name)

    passing(one_after_the_other)
    assert room.woken == "ab"
    assert room.log[-1][0] == pytest.approx(100 + 2 + 200 + 2)


def test_several_may_be_awake_and_the_one_with_least_to_do_leaves():
    room = Room("abc", awake=2)

    async def ask_all() -> None:
        busy = [asyncio.create_task(room.ask("a", 100.0)) for _ in range(20)]
        short = [asyncio.create_task(room.ask("b", 8.0))]
        await asyncio.sleep(12.0)
        await room.ask("c")
        await asyncio.gather(*busy, *short)

    passing(ask_all)
    assert room.woken == "abc"
    assert room.log[-1][1:] == ("done", "a")


def feeding(room: Room, busy: int, wanted: int, lasting: float) -> float:
    """How long `wanted` requests wait, while `busy` of another model are always under way."""

    async def feed() -> float:
        over = asyncio.Event()

        async def again_and_again() -> None:
            while not over.is_set():
                await room.ask("a")

        feeders = [asyncio.create_task(again_and_again()) for _ in range(busy)]
        await asyncio.sleep(10.5)
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(lasting):
            await asyncio.gather(*(room.ask("b") for _ in range(wanted)))
        took = asyncio.get_running_loop().time() - began
        over.set()
        await asyncio.gather(*feeders)
        return took

    return passing(feed)


def test_the_longer_queue_is_weighed_against_the_cost_of_the_swap():
    many = feeding(Room("ab", patience=1000.0), busy=5, wanted=100, lasting=1e4)
    half = feeding(Room("ab", patience=1000.0), busy=50, wanted=100, lasting=1e4)
    # Lost is 0.95 and 0.5 of the time until it pays for waking (5 s; no sleep was measured yet), and
    # then come the last second of work, the swap and the work.
    assert many == pytest.approx(5 / 0.95 + 10 + 1, abs=1.1)
    assert half == pytest.approx(5 / 0.5 + 10 + 1, abs=1.1)


def test_a_start_is_not_the_price_of_a_swap_once_one_was_woken_again():
    room = Room("abc", patience=1000.0, cost=2.0, start=90.0)

    async def feed() -> float:
        for name in "aba":
            await room.ask(name)
        over = asyncio.Event()

        async def again_and_again() -> None:
            while not over.is_set():
                await room.ask("a")

        feeders = [asyncio.create_task(again_and_again()) for _ in range(5)]
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(room.ask("b") for _ in range(100)))
        took = asyncio.get_running_loop().time() - began
        over.set()
        await asyncio.gather(*feeders)
        return took

    assert passing(feed) == pytest.approx(4 / 0.95 + 4 + 1, abs=1.1)
    assert room.turns.swap_seconds >= 92.0


def test_nobody_starves():
    waited = feeding(Room("ab", patience=10.0), busy=100, wanted=1, lasting=1e4)
    assert waited == pytest.approx(10 * 5 + 10 + 1, abs=1.1)


def test_a_short_queue_is_not_passed_over_for_ever():
    room = Room("abc", patience=3.0)

    async def all_at_once() -> None:
        over = asyncio.Event()

        async def again_and_again(name: str) -> None:
            while not over.is_set():
                await room.ask(name)

        feeders = [asyncio.create_task(again_and_again(name)) for name in "ab" * 20]
        await asyncio.sleep(20.0)
        async with asyncio.timeout(500.0):
            await room.ask("c")
        over.set()
        await asyncio.gather(*feeders)

    passing(all_at_once)
    assert {what for _, what, name in room.log if name == "c"} == {"wake", "done"}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("awake", [1, 2, 3])
def test_whatever_is_asked_is_answered(seed, awake):
    rng = Random(seed)
    room = Room("abcd", awake=awake, cost=rng.choice([0.0, 0.3, 7.0]), patience=rng.choice([0.0, 1.0, 10.0]))

    async def problem(rng: Random) -> int:
        asked = 0
        for _ in range(10):
            names = rng.choices("abcd", weights=[8, 4, 2, 1], k=rng.randrange(1, 5))
            asked += len(await asyncio.gather(*(room.ask(name, rng.random() * 3) for name in names)))
            await asyncio.sleep(rng.choice([0.0, 0.5]))
        return asked

    async def all_problems() -> int:
        return sum(await asyncio.gather(*(problem(Random(f"{seed}/{i}")) for i in range(8))))

    assert passing(all_problems) == sum(what == "done" for _, what, _ in room.log)


def test_a_model_that_does_not_wake_is_told_to_those_who_wait_and_the_others_go_on():
    room = Room("abc")
    wake, refused = room.wake, []

    async def sometimes(name: str) -> None:
        if name == "b" and len(refused) < 1:
            refused.append(name)
            raise Unavailable("agent 'b' does not wake")
        await wake(name)

    room.turns = Turns("abc", 1, sometimes, room.sleep)

    async def ask_all() -> list[object]:
        return await asyncio.gather(*(room.ask(name) for name in "abcb"), return_exceptions=True)

    first = passing(ask_all)
    assert [result if isinstance(result, str) else str(result) for result in first] == [
        "a", "agent 'b' does not wake", "c", "agent 'b' does not wake",
    ]  # fmt: skip


def test_those_who_leave_the_queue_hold_nobody_up():
    room = Room("ab")

    async def leave() -> str:
        first = asyncio.create_task(room.ask("a", 50.0))
        await asyncio.sleep(6.0)
        bored = [asyncio.create_task(room.ask("b")) for _ in range(3)]
        await asyncio.sleep(1.0)
        for task in bored:
            task.cancel()
        await first
        return await room.ask("a")

    assert passing(leave) == "a"
    assert room.turns._members["a"].running == room.turns._members["b"].running == 0


def test_close_drops_the_swap_under_way():
    room = Room("ab", cost=100.0)

    async def close_early() -> list[object]:
        asked = [asyncio.create_task(room.ask("a"))]
        await asyncio.sleep(1.0)
        await room.turns.close()
        for task in asked:
            task.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(passing(close_early)[0], asyncio.CancelledError)
    assert not room.awake


class Taking(ToyEngine):
    """The scripted engine, whose agents take turns."""

    def __init__(self) -> None:
        super().__init__(shuffle=1)
        self.room = Room("abc", cost=0.001)

    async def sample(self, draw: Draw) -> Sample:
        async with self.room.turns.turn(draw.request.agent):
            assert draw.request.agent in self.room.awake
            return await super().sample(draw)


def test_trajectories_are_those_of_a_run_without_turns(tmp_path):
    engine = Taking()
    plain, _ = run(tmp_path / "plain", toa)
    turns, _ = run(tmp_path / "turns", toa, engine=engine)
    assert plain == turns
    assert engine.room.turns.swaps > 2


@pytest.mark.parametrize("error", [Unavailable("agent 'a' died"), RuntimeError("the memory is not free")])
def test_a_model_that_does_not_sleep_keeps_nobody_waiting(error):
    room = Room("abc")
    sleep, failed = room.sleep, []

    async def sometimes(name: str) -> None:
        await sleep(name)
        if name == "a" and not failed:
            failed.append(name)
            raise error

    room.turns = Turns("abc", 1, room.wake, sometimes)

    async def ask_all() -> list[object]:
        first = await asyncio.gather(*(room.ask(name) for name in "abcb"), return_exceptions=True)
        return [*first, *await asyncio.gather(*(room.ask(name) for name in "cba"))]

    found = passing(ask_all)
    # One that ended has made room all the same; where it may not have, those who wait for it are told.
    waited = ["b", "c", "b"] if isinstance(error, Unavailable) else [error] * 3
    assert found == ["a", *waited, "c", "b", "a"] and failed == ["a"]
