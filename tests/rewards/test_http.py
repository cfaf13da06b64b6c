"""The reward behind HTTP, against a server on loopback that answers as told."""

import asyncio
import json

import pytest
from fake_endpoint import Answer, Asked, refusal, serving
from helpers import SMALL
from remote import KEY, alone

from toa_exp.core import Problem
from toa_exp.cost import architecture
from toa_exp.draws import Score
from toa_exp.engines.endpoints import BadGateway, Late, Refused
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.rewards.http import HTTP

PROBLEM = Problem("p", "What is 2 + 2?", "4")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, "MY_SCORER")


def score(answer: object, texts: tuple[str, ...] = ("4",), **settings: object) -> tuple[list, list[Asked]]:
    """What comes of texts scored at once, and the requests that the server got."""

    async def work(url: str) -> list[Score | BaseException]:
        reward = HTTP(**{"model": "m", "base_url": url, "pause": 0.002, **settings})
        try:
            return await asyncio.gather(
                *(reward.score(PROBLEM, text) for text in texts), return_exceptions=True
            )
        finally:
            await reward.close()

    respond = answer if callable(answer) else lambda _: answer
    with serving(respond) as server:
        return asyncio.run(work(server.url.removesuffix("/v1"))), server.asked


def failure(answer: Answer, **settings: object) -> BaseException:
    (result,), _ = score(answer, **settings)
    assert isinstance(result, BaseException), result
    return result


def test_two_fields_go_there_and_two_come_back():
    (result,), (asked,) = score(Answer({"score": -1.5, "tokens": 9}), key_env="MY_SCORER")
    assert (result.reward, result.tokens) == (-1.5, 9) and result.seconds > 0
    assert asked.path == "/score" and asked.body == {"prompt": "What is 2 + 2?", "response": "4"}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_scores_belong_to_their_texts_however_many_are_under_way():
    texts = tuple(str(number) for number in range(60))

    def respond(asked: Asked) -> Answer:
        number = int(asked.body["response"])
        return Answer({"score": number}, delay=0.002 * (number % 5))

    results, _ = score(respond, texts)
    assert [result.reward for result in results] == [float(text) for text in texts]


NO_SCORES = [
    b'{"score": NaN}',
    b'{"score": Infinity}',
    b'{"score": 1e999}',
    *({"score": value} for value in (None, "0.5", True, 10**400, [1.0])),
    {"reward": 1.0},
    {},
]


@pytest.mark.parametrize("body", NO_SCORES)
def test_what_is_no_finite_number_is_never_a_reward(body):
    failed = failure(Answer(body))
    assert (
        isinstance(failed, Permanent) and "no finite score" in str(failed) and "reward at http" in str(failed)
    )


def test_tokens_must_be_stated_where_flops_are_counted_from_them():
    (plain,), _ = score(Answer({"score": 1}))
    assert plain.tokens == 0
    failed = failure(Answer({"score": 1}), architecture=SMALL)
    assert isinstance(failed, Permanent) and "reward.architecture=null" in str(failed)
    (counted,), _ = score(Answer({"score": 1, "tokens": 3}), architecture=SMALL)
    assert counted.tokens == 3
    for tokens in (-1, 2.5, True):
        assert isinstance(failure(Answer({"score": 1, "tokens": tokens})), Permanent)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refusal("full", 429, {"Retry-After": "0.01"}), Refused, "429: full"),
        (refusal("loading", 503), Refused, "503: loading"),
        (refusal("boom", 500), Unavailable, "500: boom"),
        (Answer(b"<html>", 502), BadGateway, "502: <html>"),
        (Answer(b"[0.5]"), Unavailable, "no JSON object"),
        (Answer({"score": 1}, cut=3), Unavailable, "broke the connection"),
        (refusal("no", 401), BadInput, "reward.key_env=<name>"),
        (refusal("nothing here", 404), BadInput, "must take POST"),
        (refusal("too long", 400), Permanent, "400: too long"),
    ],
)
def test_errors_say_whether_they_may_pass(answer, kind, message):
    failed = failure(answer)
    assert type(failed) is kind and message in str(failed)


def test_a_server_that_is_not_there_or_hangs_is_refused():
    late = failure(Answer({"score": 1}, delay=5.0), timeout=0.05)
    assert isinstance(late, Late) and "no answer within 0.05 s" in str(late)
    with serving(lambda _: Answer({"score": 1})) as server:
        pass
    failed = failure(Answer({"score": 1}), base_url=server.url)
    assert isinstance(failed, Refused) and "cannot be reached" in str(failed)


def test_only_the_models_name_is_the_identity():
    def fingerprint(**fields: object) -> str:
        return json.dumps(HTTP(**{"model": "m", "base_url": "http://x", **fields}).fingerprint())

    assert fingerprint() == fingerprint(base_url=["http://y", "http://z"], timeout=5.0, key_env="MY_SCORER")
    assert fingerprint() != fingerprint(model="n")


def test_flops_are_counted_from_the_architecture(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    given = HTTP(model="m", base_url="http://x", architecture=str(tmp_path), output_head=True)
    assert given.shape == architecture(SMALL)
    assert HTTP(model="m", base_url="http://x").shape is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": None}, "reward.base_url=http"),
        ({"base_url": "x:80"}, "no URL such as"),
        ({"base_url": "http://me:hidden@x"}, "would end up in logs"),
        ({"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is empty or not set"),
        ({"timeout": 0.0}, "seconds above 0"),
        ({"base_url": ["http://x", 5]}, "is no URL, nor a list of them"),
        ({"start": 0, "most": 3}, "reward.start=0"),
        ({"most": 0}, "reward.most=0"),
    ],
)
def test_what_cannot_be_used_is_told_at_once(settings, message):
    with pytest.raises(BadInput) as raised:
        HTTP(**{"model": "m", "base_url": "http://x", **settings})
    assert message in str(raised.value) and "hidden" not in str(raised.value)
