"""The engine of remote endpoints, against a server on loopback."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import count
from pathlib import Path

import pytest
from fake_endpoint import Answer, Asked, completion, refusal, serving
from helpers import SMALL, ToyEngine, ToyReward, cli, lines, run

from toa_exp.core import Problem, Request, Usage
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines.answers import retry_after
from toa_exp.engines.endpoints import Endpoint, Limits, Refused, enter
from toa_exp.engines.mixed import Mixed
from toa_exp.engines.openai import OpenAI
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.methods.parallel import parallel

KEY = "sk-not-a-real-key-0123456789"
FAST = {"pause": 0.002}
OK = Answer(completion())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("MY_PROVIDER", KEY)


def agent(name: str = "ash", model: str = "m", options: dict | None = None, **sampling: object) -> Agent:
    fields = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 40} | sampling
    return Agent(name, model, None, fields, architecture=SMALL, options=options or {})


def draw(number: int = 0, name: str = "ash") -> Draw:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    asked, prompt = digest(name.encode()), digest(canonical(messages))
    key = draw_key("p", asked, prompt, number, 0)
    return Draw(key, Problem("p", "?"), Request(name), messages, asked, prompt, number, 0)


def ask(
    respond: Callable[[Asked], Answer] | Answer, number: int = 1, one: Agent | None = None, **settings: object
) -> tuple[list[Sample | BaseException], list[Asked]]:
    """What comes of draws that are all asked for at once, and the requests that the server got."""
    one = one or agent()
    with serving(respond if callable(respond) else lambda _: respond) as server:
        return samples([server.url], number, one, **settings), server.asked


def samples(urls: Sequence[str], number: int, one: Agent, **settings: object) -> list[Sample | BaseException]:
    async def work() -> list[Sample | BaseException]:
        engine = OpenAI({one.name: one}, base_url=list(urls), **{**FAST, **settings})
        try:
            draws = [engine.sample(draw(i)) for i in range(number)]
            return await asyncio.wait_for(asyncio.gather(*draws, return_exceptions=True), 30)
        finally:
            await engine.close()

    return asyncio.run(work())


def error(answer: Answer, **settings: object) -> BaseException:
    (result,), _ = ask(answer, **settings)
    assert isinstance(result, BaseException), result
    return result


def test_a_draw_is_one_request_with_model_messages_sampling_and_seed():
    one = agent(extra_body={"top_k": 20})
    (sample,), (asked,) = ask(OK, one=one)
    assert (sample.text, sample.usage, sample.failure) == ("4", Usage(5, 2), None) and sample.seconds > 0
    assert asked.path == "/v1/chat/completions" and "authorization" not in asked.headers
    assert asked.body == {
        "model": "m",
        "messages": draw().messages,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 40,
        "top_k": 20,
        "seed": draw().sampling_seed >> 32,
    }


def test_draws_have_seeds_of_their_own_that_fit_into_32_bits():
    _, asked = ask(OK, 50)
    seeds = {request.body["seed"] for request in asked}
    assert len(seeds) == 50 and all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == {request.body["seed"] for request in ask(OK, 50)[1]}


def test_fields_that_an_endpoint_refuses_are_left_out():
    one = agent(
        top_p=1.0, options={"omit": ["seed", "top_p"], "token_limit": "max_completion_tokens"}
    )  # an agent's options come before the engine's
    _, (asked,) = ask(OK, one=one, omit=[], token_limit="max_tokens")
    assert set(asked.body) == {"model", "messages", "temperature", "max_completion_tokens"}
    with pytest.raises(BadInput, match=r"omits temperature, but samples with temperature=0\.7"):
        OpenAI({"ash": agent()}, base_url="http://x/v1", omit=["temperature"])


def test_a_text_cut_at_its_limit_and_an_empty_text_of_a_token_are_answers():
    assert ask(Answer(completion("fou", reason="length")))[0][0].text == "fou"
    assert ask(Answer(completion("", usage=(5, 1))))[0][0].usage == Usage(5, 1)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 4203 tokens",
        "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is "
        "4096 tokens and your request has 2104 input tokens (2000 > 4096 - 2104).",
        "Input length (11680) exceeds model's maximum context length (4096).",
        "The decoder prompt (length 100) is longer than the maximum model length of 64.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "the request exceeds the available context size, try increasing it",
    ],
)
def test_a_prompt_over_the_window_is_a_failure_of_its_own(message):
    (sample,), _ = ask(refusal(message, type="BadRequestError"))
    assert (sample.text, sample.usage, sample.failure) == ("", Usage(0, 0), "context_window")


def test_an_endpoint_that_is_silent_for_long_is_given_up_until_it_answers():
    async def work() -> None:
        one = endpoint()
        now = time.monotonic()
        for age in (90.0, 50.0, 0.0):
            one.failed(Refused("no"), sent=now - age, now=now - age)
        with pytest.raises(Permanent, match=r"no answer for 90 s, more than engine\.longest_wait=60"):
            await enter([one], 1.0)
        one.answered(in_time=True)
        assert one.given_up(now) is None

    asyncio.run(work())


def test_a_prompt_that_leaves_less_room_than_max_tokens_is_asked_for_what_is_left():
    def respond(asked: Asked) -> Answer:
        if asked.body["max_tokens"] > 16:
            return refusal(
                "This model's maximum context length is 4096 tokens. However, you requested 4120 tokens "
                "(4080 in the messages, 40 in the completion)."
            )
        return OK

    (sample,), asked = ask(respond)
    assert sample.text == "4" and [request.body["max_tokens"] for request in asked] == [40, 16]
    (sample,), asked = ask(refusal("maximum context length is 64 tokens, your request has 60 input tokens"))
    assert sample.failure == "context_window" and len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "failure", "usage"),
    [
        (refusal("too long", code="context_length_exceeded"), "context_window", Usage(0, 0)),
        (refusal("filtered", code="content_filter"), "content_filter", Usage(0, 0)),
        (Answer(completion("half an ans", reason="content_filter")), "content_filter", Usage(5, 2)),
        (Answer(completion(None, refusal="I will not")), "refusal", Usage(5, 2)),
        (Answer(completion(None, reason="length", reasoning="hm")), "reasoning_cut", Usage(5, 2)),
    ],
)
def test_typed_failures_have_the_tokens_that_they_took(answer, failure, usage):
    (sample,), _ = ask(answer)
    assert (sample.text, sample.failure, sample.usage) == ("", failure, usage)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"{'choices'"), "no chat completion"),
        (Answer(b"<html>proxy</html>"), "no chat completion"),
        (Answer([1]), "no chat completion"),
        (Answer({"choices": [], "usage": {}}), "no chat completion"),
        (Answer(completion(), cut=20), "broke the connection"),
        (Answer(completion(None)), "without content"),
        (Answer(completion("", usage=(5, 0))), "without content"),
        (Answer(completion(None, reason="error")), "broke off"),
        (Answer({"error": {"message": "upstream died", "code": 502}}), "502: upstream died"),
        (refusal("boom", 500), "500: boom"),
        (Answer(b"bad gateway", 502), "502: bad gateway"),
    ],
)
def test_what_may_pass_is_unavailable(answer, message):
    failed = error(answer)
    assert isinstance(failed, Unavailable) and not isinstance(failed, Permanent)
    assert message in str(failed) and "agent 'ash' at http://127.0.0.1" in str(failed)


@pytest.mark.parametrize("usage", [None, {}, (0, 0), (5, 0), {"prompt_tokens": 5}, (5, True)])
def test_an_answer_that_does_not_state_its_tokens_is_an_error(usage):
    failed = error(Answer(completion(usage=usage)))
    assert isinstance(failed, Permanent) and "does not say how many tokens" in str(failed)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refusal("wrong", 401), BadInput, "environment variable MY_PROVIDER"),
        (refusal("not yours", 403), BadInput, "refuses access"),
        (refusal("no such model", 404), BadInput, "does not know model 'm'"),
        (Answer({"detail": "Not Found"}, 404), BadInput, "404: Not Found"),
        (Answer(b"", 307, {"Location": "/v2"}), BadInput, "moved to '/v2'"),
        (refusal("pay", 402), BadInput, "no credit"),
        (refusal("quota", 429, code="insufficient_quota"), BadInput, "no credit"),
        (refusal("seed is unknown"), Permanent, "400: seed is unknown"),
        (refusal("x" * 5000, 422), Permanent, "sampling"),
    ],
)
def test_what_will_not_pass_says_what_to_mend(answer, kind, message):
    failed = error(answer, key_env="MY_PROVIDER")
    assert type(failed) is kind and message in str(failed) and len(str(failed)) < 800


def test_the_key_goes_into_the_header_and_nowhere_else(caplog):
    caplog.set_level(logging.DEBUG)
    one = agent(options={"key_env": "MY_PROVIDER"})
    echo = refusal(f"Incorrect key {KEY} (sk-n***6789)", 401)
    (failed,), (asked,) = ask(lambda _: echo, one=one)
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    engine = OpenAI({"ash": one}, base_url="http://x/v1")
    shown = [str(failed), repr(failed), repr(vars(engine)), repr(one.fingerprint()), caplog.text]
    assert not any(KEY in text or "6789" in text for text in shown)
    lost = error(Answer(completion(), cut=5), one=one)
    assert KEY not in f"{lost!r} {lost.__cause__!r}" and lost.__suppress_context__


def test_only_what_decides_samples_is_in_the_fingerprint():
    def fingerprint(**fields: object) -> object:
        sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 9}
        agents = {"a": {"model": "m", "architecture": SMALL, **fields}}
        return agents_of({"sampling": sampling, "agents": agents})["a"].fingerprint()

    plain = fingerprint()
    options = {"base_url": "http://x/v1", "key_env": "K", "timeout": 3, "omit": ["seed"]}
    assert fingerprint(options=options) == fingerprint(engine="other") == plain
    assert fingerprint(sampling={"extra_body": {}}) == plain
    assert fingerprint(sampling={"extra_body": {"top_k": 4}}) != plain
    assert fingerprint(model="n") != plain


@pytest.mark.parametrize(
    ("one", "settings", "message"),
    [
        (agent(), {"base_url": None}, "no endpoint"),
        (agent(), {"base_url": "localhost:8000/v1"}, "no URL such as"),
        (agent(), {"base_url": "http://h:port/v1"}, "no URL such as"),
        (agent(), {"base_url": "http://me:hidden@x/v1"}, "would end up in logs"),
        (agent(), {"base_url": "http://x/v1/chat/completions"}, "must end before"),
        (agent(), {"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is empty or not set"),
        (agent(), {"start": 0}, "1 <= start <= most"),
        (agent(), {"omit": ["sed"]}, "Did you mean 'seed'"),
        (agent(), {"token_limit": "max"}, "max_completion_tokens"),
        (agent(), {"timeout": 0.0}, "seconds above 0"),
        (agent(model="simulated"), {}, "engine=simulator"),
        (agent(options={"base_ulr": "http://x"}), {}, "Did you mean 'base_url'"),
        (agent(top_p=0.0), {}, "top_p above 0"),
        (agent(extra_body={"n": 3}), {}, "extra_body.n is a field"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_sent(one, settings, message):
    with pytest.raises(BadInput) as raised:
        OpenAI({"ash": one}, **{"base_url": "http://x/v1", **settings})
    assert message in str(raised.value) and "hidden" not in str(raised.value)


def test_a_fault_is_retried_by_the_sampler_and_then_the_problem_is_parked(tmp_path):
    turns = count()
    engine_agents = {"ash": agent()}
    with serving(lambda _: OK if next(turns) % 2 else refusal("boom", 500)) as server:
        engine = OpenAI(engine_agents, base_url=server.url, **FAST)
        text, seen = run(tmp_path / "flaky", parallel, engine=Closing(engine), retries=20, concurrency=1)
        assert not seen.reasons and len(lines(text)) == 12
        server.respond = lambda _: refusal("boom", 500)
        engine = OpenAI(engine_agents, base_url=server.url, **FAST)
        _, seen = run(tmp_path / "broken", parallel, engine=Closing(engine), retries=1, problems=2)
    assert set(seen.reasons) == {"p0", "p1"} and "500: boom" in seen.reasons["p0"]


class Closing:
    """Closes its engine once nothing is under way, as `toa-exp run` does at the end."""

    def __init__(self, engine: OpenAI) -> None:
        self.agents = engine.agents
        self._engine = engine
        self._now = 0

    async def sample(self, one: Draw) -> Sample:
        self._now += 1
        try:
            return await self._engine.sample(one)
        finally:
            self._now -= 1
            if not self._now:
                await self._engine.close()


def test_an_answer_that_does_not_come_in_time_is_refused_and_halves_the_limit():
    async def work(url: str) -> tuple[BaseException, Endpoint]:
        engine = OpenAI({"ash": agent()}, base_url=url, timeout=0.05, **FAST)
        (late,) = await asyncio.gather(engine.sample(draw()), return_exceptions=True)
        await engine.close()
        return late, *engine._endpoints.values()

    with serving(lambda _: replace(OK, delay=5.0)) as server:
        late, endpoint = asyncio.run(work(server.url))
    assert isinstance(late, Refused) and "no answer within 0.05 s" in str(late)
    assert endpoint.limit == 8 and endpoint.in_flight == 0


def test_a_refused_connection_is_unavailable():
    with serving(lambda _: OK) as server:
        url = server.url
    (failed,) = samples([url], 1, agent())
    assert isinstance(failed, Refused) and "cannot be reached" in str(failed)


def test_a_dead_endpoint_holds_nobody_for_long():
    with serving(lambda _: OK) as server:
        url = server.url
    results = samples([url], 300, agent(), start=2, pause=0.01)  # one at a time would outlast the test
    assert all(isinstance(result, Unavailable) for result in results)


def test_the_share_of_a_dead_replica_goes_to_the_live_one():
    with serving(lambda _: OK) as dead:
        pass
    with serving(lambda _: replace(OK, delay=0.002)) as live:
        results = samples([dead.url, live.url], 60, agent(), start=4, pause=0.5)
    assert sum(isinstance(result, Sample) for result in results) >= 56
    assert len(live.asked) >= 56


def test_requests_go_to_the_least_loaded_replica():
    with (
        serving(lambda _: replace(OK, delay=0.004)) as quick,
        serving(lambda _: replace(OK, delay=0.06)) as slow,
    ):
        results = samples([slow.url, quick.url], 200, agent(), start=4, most=4)
    assert all(isinstance(result, Sample) for result in results)
    assert len(quick.asked) > 2 * len(slow.asked) > 0
    assert max(quick.most, slow.most) <= 4


def test_agents_on_one_url_with_one_key_share_its_limit():
    url = "http://x/v1"
    agents = {name: agent(name) for name in ("a", "b")}
    agents["c"] = agent("c", options={"key_env": "MY_PROVIDER"})
    assert len(OpenAI(agents, base_url=url)._endpoints) == 2


def test_the_limit_grows_with_answers_in_time_up_to_its_most():
    results, _ = ask(replace(OK, delay=0.001), 100, start=1, most=8)
    assert all(isinstance(result, Sample) for result in results)
    with serving(lambda _: replace(OK, delay=0.005)) as server:
        samples([server.url], 100, agent(), start=1, most=8)
    assert server.most == 8


def test_a_limit_of_the_server_is_found_and_no_storm_breaks_loose(tmp_path):
    """A server that refuses all but six at once: everything is answered, few requests are refused."""
    refused = count()

    def respond(_: Asked) -> Answer:
        if server._now > 6:
            next(refused)
            return refusal("slow down", 429)
        return replace(OK, delay=0.005)

    with serving(respond) as server:
        engine = OpenAI({"ash": agent()}, base_url=server.url, start=16, **FAST)
        _, seen = run(tmp_path, parallel, engine=Closing(engine), problems=40, concurrency=40, retries=10)
    assert not seen.reasons
    assert next(refused) < 40 * 8 / 4


def endpoint(start: int = 8, **limits: float) -> Endpoint:
    return Endpoint(
        "http://x/v1", Limits(**{"start": start, "most": 16, "pause": 1, "longest_wait": 60} | limits)
    )


def in_loop(work: Callable[[], object]) -> object:
    async def main() -> object:
        return work()

    return asyncio.run(main())


def test_a_refusal_halves_the_limit_once_for_all_that_were_sent_before():
    def work() -> None:
        one = endpoint()
        for _ in range(8):
            one.failed(Refused("no"), sent=1.0, now=2.0)
        assert one.limit == 4 and one.resume_at == 3.0
        one.failed(Refused("no"), sent=3.0, now=4.0)
        assert one.limit == 2 and one.resume_at == 6.0
        one.in_flight = 2
        one.answered(in_time=True)
        assert one.limit == 2.5
        one.answered(in_time=False)
        assert one.limit == 2.5
        one.failed(Refused("no"), sent=7.0, now=8.0)
        assert one.limit == 1.25 and one.resume_at == 9.0  # the row of refusals was broken

    in_loop(work)


def test_a_server_that_asks_for_no_wait_is_not_stormed():
    def work() -> None:
        one = endpoint()
        for turn in range(3):
            one.failed(Refused("no", wait=0.0), sent=10.0 * turn, now=10.0 * turn)
        assert one.resume_at == 24.0

    in_loop(work)


def test_one_fault_changes_nothing_and_two_in_a_row_count_as_a_refusal():
    def work() -> None:
        one = endpoint()
        one.failed(Unavailable("500"), sent=1.0, now=1.0)
        assert one.limit == 8 and one.free(1.0)
        one.failed(Unavailable("500"), sent=1.0, now=1.0)
        assert one.limit == 4 and not one.free(1.0)

    in_loop(work)


def test_the_wait_that_an_endpoint_asks_for_is_kept():
    refusals = iter([refusal("slow down", 429, {"Retry-After": "0.08"})])
    times: list[float] = []

    def respond(_: Asked) -> Answer:
        times.append(time.monotonic())
        return next(refusals, OK)

    async def work() -> list[Sample | BaseException]:
        engine = OpenAI({"ash": agent()}, base_url=server.url, start=1, **FAST)
        results = await asyncio.gather(*(engine.sample(draw(i)) for i in range(3)), return_exceptions=True)
        await engine.close()
        return results

    with serving(respond) as server:
        results = asyncio.run(work())
    assert isinstance(results[0], Refused) and results[0].wait == 0.08
    assert [result.text for result in results[1:]] == ["4", "4"]
    assert times[1] - times[0] >= 0.08


def test_a_wait_may_be_given_in_seconds_or_as_a_date():
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert retry_after("17", now) == 17 and retry_after("-3", now) == 0
    assert retry_after(format_datetime(now.replace(minute=2), usegmt=True), now) == 120
    assert retry_after("Sun, 01 Mar 2026 11:00:00 GMT", now) == 0
    assert [retry_after(value, now) for value in (None, "soon", "nan", "inf")] == [None] * 4


def test_a_date_is_honoured_and_too_long_a_wait_gives_the_endpoint_up():
    date = format_datetime(datetime.fromtimestamp(time.time() + 7200, UTC), usegmt=True)
    with serving(lambda _: refusal("daily limit", 429, {"Retry-After": date})) as server:

        async def work() -> list[BaseException]:
            engine = OpenAI({"ash": agent()}, base_url=server.url, start=1)
            first = await asyncio.gather(*(engine.sample(draw(i)) for i in range(3)), return_exceptions=True)
            (later,) = await asyncio.gather(engine.sample(draw(3)), return_exceptions=True)
            await engine.close()
            return [*first, later]

        results = asyncio.run(work())
    assert len(server.asked) == 1
    assert 7190 < results[0].wait <= 7200
    assert all(type(result) is Unavailable for result in results[1:3])
    assert type(results[3]) is Permanent and "longest_wait=600" in str(results[3])


def test_a_cancelled_draw_gives_its_place_back_and_the_session_closes_silently():
    async def work(url: str) -> None:
        engine = OpenAI({"ash": agent()}, base_url=url, start=1, most=1)
        (place,) = engine._endpoints.values()
        running, waiting = (asyncio.create_task(engine.sample(draw(i))) for i in range(2))
        while not place.in_flight:
            await asyncio.sleep(0.001)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert place.in_flight == 0 and place.limit == 1
        slow = respond[0]
        respond[0] = OK
        assert (await engine.sample(draw(2))).text == "4"
        assert slow.delay == 5.0
        await engine.close()

    respond = [replace(OK, delay=5.0)]
    with serving(lambda _: respond[0]) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(work(server.url))


def test_a_place_given_at_the_moment_of_cancelling_is_not_lost():
    async def work() -> None:
        one = endpoint(start=1)
        visit = await enter([one], 1.0)
        waiting = asyncio.create_task(enter([one], 1.0))
        await asyncio.sleep(0)
        with visit:
            pass
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert one.in_flight == 0

    asyncio.run(work())


def test_seconds_are_shared_out_over_the_requests_under_way():
    one = endpoint()
    first = one.begin(10.0, 60.0)
    second = one.begin(11.0, 60.0)
    assert one.busy_seconds(13.0) - first._busy == 2.0  # one alone, then half of two
    one.end(13.0)
    assert one.busy_seconds(16.0) - second._busy == 4.0


def test_an_agent_may_have_an_engine_of_its_own():
    async def work(url: str) -> list[Sample]:
        toy = ToyEngine(["b"])
        remote = OpenAI({"a": agent("a")}, base_url=url)
        engine = Mixed({**remote.agents, **toy.agents}, [remote, toy])
        results = [await engine.sample(draw(0, name)) for name in engine.agents]
        await engine.close()
        return results

    with serving(lambda _: OK) as server:
        remote, local = asyncio.run(work(server.url))
    assert remote.text == "4" and local.text.startswith("b ")


ENSEMBLE = (
    "ensemble.agents={{ash:{{model:m,architecture:{shape},options:{{key_env:MY_PROVIDER}}}},"
    "elm:{{model:n,architecture:{shape}}}}}"
)
SHAPE = json.dumps(SMALL).replace('"', "").replace(" ", "")


def arguments(path: Path, url: str) -> list[str]:
    return [
        "run", "task=jsonl", f"task.path={path}", "ensemble=simulated", "engine=openai", "reward=verifier",
        ENSEMBLE.format(shape=SHAPE), f"engine.base_url={url}", "engine.start=2", "method=toa",
        "budget.samples=6", "backoff=0.01",
    ]  # fmt: skip


def seeded(asked: Asked) -> Answer:
    """An answer that depends on the draw alone."""
    return Answer(completion(f"Answer: {asked.body['seed'] % 7}"), delay=0.005)


def test_a_killed_run_goes_on_and_draws_nothing_twice(questions, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with serving(seeded) as server:
        done = cli(*arguments(questions, server.url), cwd=whole)
        assert done.returncode == 0, done.stderr
        total = len(server.asked)
        assert total == len({(a.body["model"], a.body["seed"]) for a in server.asked})
        assert {a.headers["authorization"] for a in server.asked if "authorization" in a.headers} == {
            f"Bearer {KEY}"
        }
        server.asked.clear()
        process = subprocess.Popen(
            [sys.executable, "-m", "toa_exp", *arguments(questions, server.url)],
            cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and len(server.asked) < total // 2:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stored = {draw["draw"] for draw in lines(cli("store", "export", cwd=killed).stdout)}
        server.asked.clear()
        again = cli(*arguments(questions, server.url), cwd=killed)
        assert again.returncode == 0, again.stderr
        assert len(server.asked) == total - len(stored)
        server.asked.clear()
        moved = [*arguments(questions, "http://elsewhere/v1"), "engine.most=99"]
        rerun = cli(*moved, cwd=killed)
        assert rerun.returncode == 0 and not server.asked
        assert "holds results of another configuration" not in rerun.stderr
        signatures = [made.stdout.strip().splitlines()[-2] for made in (again, rerun)]
        assert signatures[0] == signatures[1] and "engine:openai|" in signatures[0]
    steps = [trajectory(next(folder.rglob("trajectories.jsonl"))) for folder in (whole, killed)]
    assert steps[0] == steps[1]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(KEY.encode() in content for content in written)
    assert KEY not in done.stdout + done.stderr + again.stderr


def trajectory(path: Path) -> list[object]:
    """What was drawn and chosen; seconds are measured, and differ."""
    return [(line["problem"], line["samples"], line["answer"]) for line in lines(path.read_text())]


def test_ctrl_c_ends_the_run_without_a_warning(questions, tmp_path):
    with serving(lambda _: replace(OK, delay=30.0)) as server:
        process = subprocess.Popen(
            [sys.executable, "-W", "always", "-X", "dev", "-m", "toa_exp", *arguments(questions, server.url)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        while process.poll() is None and not server.asked:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "go on with: toa-exp run" in errors
    assert "Unclosed" not in errors and "Traceback" not in errors and "never retrieved" not in errors


def test_a_mixed_ensemble_is_chosen_on_the_command_line(questions, tmp_path):
    mixed = ENSEMBLE.format(shape=SHAPE).replace("model:n,architecture:" + SHAPE, "model:simulated,engine:sim"
        ",architecture:" + SHAPE)  # fmt: skip
    base = [*arguments(questions, "http://x/v1"), mixed, "task.limit=2", "method=parallel"]
    missing = cli(*base, cwd=tmp_path)
    assert missing.returncode == 2 and "+engine@engines.sim=<choice>" in missing.stderr
    with serving(seeded) as server:
        base.append(f"engine.base_url={server.url}")
        result = cli(*base, "+engine@engines.sim=simulator", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(server.asked) == 6 and {a.body["model"] for a in server.asked} == {"m"}
    samples = lines(next(tmp_path.rglob("trajectories.jsonl")).read_text())[0]["samples"]
    assert {sample["agent"] for sample in samples} == {"ash", "elm"}
    assert "|engine:openai+simulator|" in result.stdout


def test_no_reward_is_asked_about_a_failure(tmp_path):
    reward = ToyReward()
    with serving(lambda _: refusal("maximum context length is 8")) as server:
        engine = OpenAI({"ash": agent()}, base_url=server.url)
        text, _ = run(tmp_path, parallel, engine=Closing(engine), reward=reward, problems=1)
    assert not reward.asked and lines(text)[0]["samples"][0]["failure"] == "context_window"
    assert os.environ["MY_PROVIDER"] == KEY
