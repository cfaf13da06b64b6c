"""A scorer behind HTTP, in two fields there and two back.

    POST {base_url}/score    {"prompt": "What is 2 + 2?", "response": "4"}
    200                      {"score": 0.93, "tokens": 41}

`prompt` is the problem's, `response` the answer to it. `score` is a finite number, higher is better.
`tokens`, which may be left out, is how many the model read; FLOPs are counted from it. Requests come
one pair each and many at once, so that a server batches them as it likes. Anything but 200 is an
error, whose text is shown: 429 and 503, with Retry-After, slow the client down, a gateway's 502 and 504
are waited for as well, other statuses from 500 are tried again, 4xx are not. `toa-exp serve` serves any
of this package's rewards so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Unpack

from toa_exp.core import Problem
from toa_exp.cost import Architecture, architecture
from toa_exp.draws import Score
from toa_exp.engines.answers import Asked, Mends, complain, decoded, message_of, parsed, shorten
from toa_exp.engines.client import Answer, Client, Manner, Target
from toa_exp.engines.connection import check_timeouts, check_urls, key_of, urls_of
from toa_exp.engines.endpoints import Endpoint, enter
from toa_exp.engines.limits import LimitFields, Limits
from toa_exp.ensemble import model_config
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.rewards.base import Range

_HUGE = 1e300  # no score; and an integer over it is no float


class HTTP:
    """Reward of a server that speaks the protocol of this module.

    `model` names what scores there, with its version: it is the reward's identity, so that scores of
    another model are never taken for this one's. Where the server is (`base_url`, one or several that
    share the load) and the other fields decide no score; they are those of `engines.openai.OpenAI`, and
    `range` says where most scores lie.
    `architecture` is what FLOPs are counted from: a config.json, or the hub id or folder of the
    model that has it, with `output_head` where the model is one that writes; None counts none.
    Raises BadInput for what cannot be used. A score that is missing, no number or not finite is a
    Permanent error.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str | list[str] | None = None,
        key_env: str | None = None,
        architecture: Mapping[str, Any] | str | None = None,
        output_head: bool = False,
        range: list[float] | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        task: object = None,
        **limits: Unpack[LimitFields],
    ) -> None:
        if not base_url:
            raise BadInput("the reward has no endpoint; give reward.base_url=http://<host>:<port>")
        check_urls(base_url, "reward")
        urls = urls_of(base_url)
        check_timeouts(timeout, connect_timeout, "reward")
        key = key_of(key_env, "reward")
        self.shape = _shape(architecture, output_head)
        self.range = Range.of(range)
        self._model = model
        self._endpoints = [Endpoint(url, Limits.of("reward", limits)) for url in urls]
        self._targets = {url: Target.of(f"{url}/score") for url in urls}
        self._asked = {url: Asked("reward", url, key_env, key, _mends(url)) for url in urls}
        self._manner = Manner.of(key, timeout, connect_timeout)
        self._client = Client()

    def fingerprint(self) -> Mapping[str, Any]:
        """The name of the model; not where it is."""
        return {"reward": "http", "model": self._model}

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; its seconds are its share of the endpoint's time.

        Raises Unavailable for faults that may pass, Permanent and BadInput for those that will not.
        """
        content = json.dumps({"prompt": problem.prompt, "response": text}).encode()
        with await enter(self._endpoints, self._manner.seconds) as visit:
            url = visit.endpoint.url
            answer = await self._client.ask(self._targets[url], content, self._manner, self._asked[url])
            reward, tokens = self._read(answer, self._asked[url])
            return Score(reward, tokens, visit.seconds())

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, answer: Answer, asked: Asked) -> tuple[float, int]:
        """Score and tokens of an answer."""
        body = parsed(answer.content)
        if answer.status != 200:
            complain(answer.status, answer.headers, message_of(body, answer.content, asked), asked)
        if not isinstance(body, dict):
            raise Unavailable(
                f"{asked} answered with no JSON object: {shorten(decoded(answer.content), asked)!r}"
            )
        score, tokens = body.get("score"), body.get("tokens")
        if not isinstance(score, int | float) or isinstance(score, bool) or not -_HUGE < score < _HUGE:
            raise Permanent(
                f"{asked} gave no finite score: {shorten(decoded(answer.content), asked)!r}. It must answer "
                f'{{"score": <number>}}; look into its log'
            )
        if tokens is None and self.shape is None:
            tokens = 0
        if type(tokens) is not int or tokens < 0:
            raise Permanent(
                f"{asked} does not say how many tokens it read ({json.dumps(tokens)[:100]}), so that its "
                f'FLOPs are unknown; let it answer {{"score": ..., "tokens": <integer>}}, or set '
                f"reward.architecture=null to count none"
            )
        return float(score), tokens


def _shape(given: Mapping[str, Any] | str | None, output_head: bool) -> Architecture | None:
    if given is None:
        return None
    config = model_config(given, None, "architecture of the reward") if isinstance(given, str) else given
    try:
        return architecture(config, output_head=output_head)
    except BadInput as error:
        raise BadInput(f"reward: {error} (reward.architecture)") from error


def _mends(url: str) -> Mends:
    return Mends(
        url="reward.base_url",
        key="reward.key_env",
        unknown="does not know the path",
        compare=f"the scorer must take POST {url}/score, so compare reward.base_url with its own",
        refused='it must take {"prompt": ..., "response": ...}; look into its log',
    )
