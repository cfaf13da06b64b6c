"""What is seen of shards that are under way."""

import asyncio

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from toa_exp.runners import tally
from toa_exp.runners.tally import Tally, Watched, telling
from toa_exp.sampler import Counts


class Called:
    """An actor's method, called at once."""

    def __init__(self, method):
        self.remote = method


class Here:
    """The actor, in this process."""

    def __init__(self):
        self._tally = Tally()
        self.note = Called(self._tally.note)
        self.latest = Called(self._latest)

    async def _latest(self):
        return self._tally.latest()


def test_shards_under_way_are_counted_until_they_are_finished(monkeypatch):
    monkeypatch.setattr(tally, "_EVERY", 0.01)
    total = Counts()

    async def run() -> list[int]:
        actor = Here()
        watched = Watched(actor, total)
        following = asyncio.create_task(watched.follow())
        first, second, seen = Counts(samples=3), Counts(samples=10), []
        async with telling(actor, 0, first):
            async with telling(actor, 1, second):
                first.samples += 2
                await asyncio.sleep(0.1)
                seen.append(total.samples)
            watched.finish(1, Counts(samples=12, stored=4))
            await asyncio.sleep(0.1)
            seen.append(total.samples)
        following.cancel()
        watched.show({})
        return seen

    assert asyncio.run(run()) == [15, 17]
    assert total == Counts(samples=12, stored=4)
