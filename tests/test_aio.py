"""Waiting for several things at once."""

import asyncio

import pytest

from toa_exp.aio import Once
from toa_exp.errors import BadInput, Unavailable


def test_what_many_ask_for_is_made_once_and_outlives_who_asked_first():
    made = []

    async def make() -> int:
        await asyncio.sleep(0)
        made.append(1)
        return len(made)

    async def main() -> None:
        once = Once(make)
        first = asyncio.create_task(once.get())
        second = asyncio.create_task(once.get())
        await asyncio.sleep(0)
        assert once.made is None
        first.cancel()
        assert await second == await once.get() == once.made == 1
        assert first.cancelled()
        assert await once.end() == 1
        assert once.made is None
        assert await once.get() == 2

    asyncio.run(main())


def test_what_was_unavailable_is_made_again_and_bad_input_is_not():
    errors: list[Exception] = [Unavailable("away"), BadInput("no such model")]

    async def make() -> None:
        raise errors.pop(0)

    async def main() -> None:
        once = Once(make)
        for expected in (Unavailable, BadInput, BadInput):
            with pytest.raises(expected):
                await once.get()
            assert once.made is None
        assert await once.end() is None

    asyncio.run(main())
    assert errors == []


def test_the_end_of_what_is_made_is_in_one_step():
    """One who is cancelled while it ends gets hold of the value, or leaves it where it is."""

    async def make() -> str:
        return "there"

    async def main() -> None:
        once = Once(make)
        await once.get()
        with pytest.raises(StopIteration) as ended:
            once.end().send(None)
        assert ended.value.value == "there"

    asyncio.run(main())


def test_the_end_waits_for_what_is_being_made():
    async def main() -> None:
        release = asyncio.Event()

        async def make() -> str:
            await release.wait()
            return "there"

        once = Once(make)
        assert await once.end() is None
        asking = asyncio.create_task(once.get())
        await asyncio.sleep(0)
        ending = asyncio.create_task(once.end())
        await asyncio.sleep(0)
        assert not ending.done()
        release.set()
        assert await ending == await asking == "there"

    asyncio.run(main())
