"""A clock that runs ahead whenever there is nothing to do."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: the time that it should wait passes at once."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list:
        assert timeout is not None, "everybody waits for somebody else"
        self.passed += timeout
        return super().select(0)


def passing(make: Callable[[], Awaitable]) -> object:
    """The result of a coroutine in a loop whose clock runs ahead whenever there is nothing to do."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.passed
    try:
        return loop.run_until_complete(make())
    finally:
        loop.close()
