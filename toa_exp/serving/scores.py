"""The server of a reward, in the protocol of `toa_exp.rewards.http`."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from aiohttp import web

from toa_exp.core import Problem
from toa_exp.errors import BadInput
from toa_exp.rewards.base import Reward
from toa_exp.serving.web import application, check_fields

_PROBE = {"prompt": "What is 2 + 2?", "response": "4"}


class Withheld:
    """Stands for what does not come with a pair of prompt and response; reading it raises BadInput."""

    def __init__(self, what: str, **known: object) -> None:
        self.__dict__.update(known)
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        raise BadInput(
            f"this reward reads the {self._what}'s {name}, and a server is sent prompt and response alone; "
            f"leave it in the run itself, and serve classifier, process or likelihood"
        )


class Scores:
    """Scores pairs as they come; the reward batches those that come together."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    async def probe(self) -> None:
        """Score once, so that the model is loaded; raises what the reward raises."""
        await self.score(_PROBE)

    async def score(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises BadInput for one that is not of the protocol."""
        check_fields(body, ["prompt", "response"])
        prompt, response = body.get("prompt"), body.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise BadInput('a request is {"prompt": <text>, "response": <text>}')
        problem = cast(Problem, Withheld("problem", prompt=prompt))
        score = await self._reward.score(problem, response)
        return {"score": score.reward, "tokens": score.tokens}


def scores_app(reward: Reward) -> web.Application:
    """The application of a reward; it listens once the model is loaded."""
    scores = Scores(reward)

    async def prepare(_: web.Application) -> None:
        await scores.probe()

    async def close(_: web.Application) -> None:
        await reward.close()

    app = application({"/score": scores.score}, [])
    app.on_startup.append(prepare)
    app.on_cleanup.append(close)
    return app
