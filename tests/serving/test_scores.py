"""A reward served over HTTP: the same numbers as in process."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from helpers import ToyReward

from toa_exp.core import Problem
from toa_exp.draws import Score
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.labels import LAB_WEIGHTS
from toa_exp.rewards.classifier import Classifier
from toa_exp.rewards.http import HTTP
from toa_exp.rewards.verifier import Verifier
from toa_exp.serving.scores import Withheld, scores_app

PROBLEM = Problem("p", "Q:12+30,5*3", "57")
TEXTS = ["", "12+30=42\n", "12+30=43\n5*3=15\n", *(f"12+30={n}\n5*3={n % 20}\n" for n in range(30))]


def served(reward: object, work: Callable[[str], Awaitable[object]]) -> object:
    """What `work` gives, which is called with the URL of the reward's server."""

    async def main() -> object:
        server = TestServer(scores_app(reward))
        await server.start_server()
        try:
            return await work(str(server.make_url("")).rstrip("/"))
        finally:
            await server.close()

    return asyncio.run(main())


def lab_reward() -> Classifier:
    return Classifier(model=str(LAB_WEIGHTS / "math" / "judge"), dtype="float64")


async def scores(reward: object) -> list[Score]:
    try:
        return await asyncio.gather(*(reward.score(PROBLEM, text) for text in TEXTS))
    finally:
        await reward.close()


def test_the_labs_reward_gives_the_same_numbers_through_http():
    here = asyncio.run(scores(lab_reward()))
    there = served(lab_reward(), lambda url: scores(HTTP(model="lab", base_url=url)))
    assert [(s.reward, s.tokens) for s in there] == [(s.reward, s.tokens) for s in here]
    assert len({s.reward for s in here}) > 10


async def status(url: str, path: str, **request: object) -> tuple[int, dict]:
    async with (
        ClientSession() as session,
        session.request("POST" if request else "GET", f"{url}{path}", **request) as response,
    ):
        return response.status, await response.json()


def test_health_and_bad_requests():
    async def work(url: str) -> list[tuple[int, dict]]:
        return [
            await status(url, "/health"),
            await status(url, "/score", json={"prompt": "a", "response": 4}),
            await status(url, "/score", json={"prompt": "a", "response": "b", "label": 1}),
            await status(url, "/score", data=b"{"),
            await status(url, "/score", json=[1]),
        ]

    health, *bad = served(ToyReward(), work)
    assert health == (200, {"status": "ok"})
    assert [code for code, _ in bad] == [400] * 4
    assert "unknown field of the request: 'label'" in bad[1][1]["error"]["message"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Permanent("too long"), Permanent),
        (Unavailable("out of memory"), Unavailable),
        (KeyError("x"), Unavailable),
    ],
)
def test_errors_of_the_reward_arrive_as_what_they_are(error, kind):
    class Failing(ToyReward):
        async def score(self, problem: Problem, text: str) -> Score:
            if text == "bad":
                raise error
            return await super().score(problem, text)

    async def work(url: str) -> BaseException:
        reward = HTTP(model="m", base_url=url)
        try:
            (result,) = await asyncio.gather(reward.score(PROBLEM, "bad"), return_exceptions=True)
            return result
        finally:
            await reward.close()

    failed = served(Failing(), work)
    assert isinstance(failed, kind) and isinstance(failed, Permanent) == (kind is Permanent)
    assert str(error.args[0]) in str(failed)


def test_a_reward_that_reads_more_than_the_pair_is_refused_at_the_start():
    reward = Verifier(metric="accuracy", task=Withheld("task"))
    with pytest.raises(BadInput, match="reads the task's score"):
        served(reward, lambda _: asyncio.sleep(0))
