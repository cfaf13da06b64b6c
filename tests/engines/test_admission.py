"""Admission, on engines that share two cores and step as vLLM does, by a clock of their own."""

import asyncio
from collections import deque
from contextlib import nullcontext
from random import Random

import pytest
from helpers import ToyEngine, run
from virtual_time import passing

from toa_exp.draws import Draw, Sample
from toa_exp.engines.admission import Admission
from toa_exp.methods.toa import toa

CORES = 2
PLACES = 16
STEP, ROW = 1.2, 0.07  # milliseconds of a core: of a step, and of each row in it; as of vLLM's CPU build


class Machine:
    """Engines whose steps take processor time; more of them than cores make each other slower."""

    def __init__(self, names: str, admission: Admission | None) -> None:
        self.admission = admission
        self.queues: dict[str, deque[tuple[asyncio.Future[None], int]]] = {name: deque() for name in names}
        self.stepping: set[str] = set()

    async def ask(self, name: str, tokens: int) -> None:
        async with self.admission.admitted(name) if self.admission else nullcontext():
            done = asyncio.get_running_loop().create_future()
            self.queues[name].append((done, tokens))
            if name not in self.stepping:
                self.stepping.add(name)
                asyncio.get_running_loop().create_task(self._work(name))
            await done

    async def _work(self, name: str) -> None:
        rows: list[list] = []
        while rows or self.queues[name]:
            while self.queues[name] and len(rows) < PLACES:
                rows.append(list(self.queues[name].popleft()))
            await asyncio.sleep((STEP + ROW * len(rows)) * max(1.0, len(self.stepping) / CORES))
            for row in rows:
                row[1] -= 1
                if not row[1] and not row[0].done():
                    row[0].set_result(None)
            rows = [row for row in rows if row[1]]
        self.stepping.discard(name)


def searching(problems: int, admission: Admission | None) -> tuple[float, float]:
    """Milliseconds for searches of eight requests each, and for the same requests all at once."""
    rng = Random(0)
    asked = [
        [(rng.choices("abcd", [37, 27, 18, 18])[0], rng.randrange(40, 80)) for _ in range(8)]
        for _ in range(problems)
    ]

    async def search(machine: Machine, requests: list[tuple[str, int]]) -> None:
        for name, tokens in requests:
            await machine.ask(name, tokens)

    async def one_by_one() -> float:
        machine = Machine("abcd", admission)
        await asyncio.gather(*(search(machine, requests) for requests in asked))
        return asyncio.get_running_loop().time()

    async def at_once() -> float:
        machine = Machine("abcd", None)
        await asyncio.gather(*(machine.ask(*request) for requests in asked for request in requests))
        return asyncio.get_running_loop().time()

    return passing(one_by_one), passing(at_once)


def admission(at_once: int = CORES) -> Admission:
    return Admission(dict.fromkeys("abcd", PLACES), at_once)


@pytest.mark.parametrize(("problems", "least"), [(512, 0.95), (128, 0.8)])
def test_engines_that_share_cores_are_kept_near_their_own_rate(problems, least):
    with_it, at_once = searching(problems, admission())
    without, _ = searching(problems, None)
    assert at_once / with_it >= least
    assert with_it < without


def test_few_searches_are_not_held_up():
    with_it, _ = searching(2, admission())
    without, _ = searching(2, None)
    assert with_it == pytest.approx(without)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_nobody_waits_while_a_core_is_free_and_everybody_is_served(at_once, seed):
    rng = Random(seed)
    gate = admission(at_once)
    machine = Machine("abcd", gate)

    async def watched(name: str, tokens: int) -> None:
        await asyncio.sleep(rng.random() * 200)
        asked = asyncio.create_task(machine.ask(name, tokens))
        await asyncio.sleep(0)
        doors = gate._doors.values()
        assert sum(door.open for door in doors) >= at_once or not any(door.waiting for door in doors)
        await asked

    async def all_of_them() -> None:
        names = rng.choices("abcd", [8, 4, 2, 1], k=300)
        await asyncio.gather(*(watched(name, rng.randrange(1, 60)) for name in names))

    passing(all_of_them)
    assert all(not door.running and not door.waiting and not door.open for door in gate._doors.values())


def test_those_who_leave_the_queue_hold_nobody_up():
    gate = admission(1)
    machine = Machine("abcd", gate)

    async def leave() -> None:
        first = [asyncio.create_task(machine.ask("a", 50)) for _ in range(20)]
        await asyncio.sleep(1.0)
        bored = [asyncio.create_task(machine.ask("b", 50)) for _ in range(5)]
        await asyncio.sleep(1.0)
        for task in [*bored, first[0]]:
            task.cancel()
        await asyncio.gather(*first[1:])
        await machine.ask("b", 5)

    passing(leave)
    assert all(not door.running and not door.waiting for door in gate._doors.values())


class Admitting(ToyEngine):
    """The scripted engine, of whose agents one at a time gets requests."""

    def __init__(self) -> None:
        super().__init__(shuffle=1)
        self.gate = Admission(dict.fromkeys("abc", 2), 1)

    async def sample(self, draw: Draw) -> Sample:
        async with self.gate.admitted(draw.request.agent):
            return await super().sample(draw)


def test_trajectories_are_those_of_a_run_without_it(tmp_path):
    plain, _ = run(tmp_path / "plain", toa)
    admitted, _ = run(tmp_path / "admitted", toa, engine=Admitting())
    assert plain == admitted
