"""Which endpoint a request goes to, and how many each gets at once."""

import asyncio
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import count

import pytest
from fake_endpoint import Answer, Asked, refusal, serving
from helpers import run
from remote import (
    FAST,
    OK,
    Closing,
    agent,
    ask,
    draw,
    samples,
)

from toa_exp.draws import Sample
from toa_exp.engines.endpoints import Endpoint, Late, Refused, enter
from toa_exp.engines.limits import Limits
from toa_exp.engines.openai import OpenAI
from toa_exp.errors import Permanent, Unavailable
from toa_exp.methods.parallel import parallel


def endpoint(start: int = 8, **limits: float) -> Endpoint:
    return Endpoint(
        "http://x/v1", Limits(**{"start": start, "most": 16, "pause": 1, "longest_wait": 60} | limits)
    )


def in_loop(work: Callable[[], object]) -> object:
    async def main() -> object:
        return work()

    return asyncio.run(main())


def test_an_endpoint_that_is_silent_for_long_is_given_up_until_it_answers():
    async def work() -> None:
        one = endpoint()
        now = time.monotonic()
        for age in (90.0, 50.0, 0.0):
            one.failed(Refused("no"), sent=now - age, now=now - age)
        with pytest.raises(Permanent, match=r"no answer for 90 s, more than engine\.longest_wait=60"):
            await enter([one], 1.0)
        one.answered(now, in_time=True)
        assert one.given_up(now) is None

    asyncio.run(work())


def test_one_that_refuses_everything_is_told_and_that_it_is_back(caplog):
    def work() -> None:
        one = endpoint()
        for turn in range(2):
            for now in (1.0, 3.0, 7.0, 15.0):
                one.failed(Refused("no"), sent=100 * turn + now, now=100 * turn + now)
            one.answered(100 * turn + 21.0, in_time=True)
            one.answered(100 * turn + 22.0, in_time=True)

    in_loop(work)
    told = [
        "http://x/v1 refuses all requests; it is asked again now and then, up to engine.longest_wait=60 s",
        "http://x/v1 answers again, after 20 s",
    ]
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == told * 2


def test_a_pause_of_ours_is_not_taken_for_one_that_was_asked_for():
    def work() -> None:
        one = endpoint(longest_wait=3.0)
        for now in (1.0, 1.5, 2.0, 2.5):
            one.failed(Refused("no"), sent=now, now=now)
            assert one.given_up(now) is None and one.resume_at <= now + 3.0
        assert "no answer for 4 s" in str(one.given_up(5.0))

    in_loop(work)


def test_time_in_which_nothing_is_asked_is_no_silence():
    def work() -> None:
        one = endpoint()
        one.failed(Unavailable("500"), sent=0.0, now=1.0)
        for now in (700.0, 701.0, 703.0):
            one.failed(Refused("no"), sent=now, now=now)
            assert one.given_up(now) is None
        for turn in range(3):  # asked for every 90 s, as retries do
            one.failed(Refused("no"), sent=790.0 + 90 * turn, now=790.0 + 90 * turn)
        assert "no answer for 270 s" in str(one.given_up(970.0))

    in_loop(work)


def test_an_answer_that_does_not_come_in_time_is_refused_and_halves_the_limit():
    async def work(url: str) -> tuple[BaseException, Endpoint]:
        engine = OpenAI({"ash": agent()}, base_url=url, timeout=0.05, **FAST)
        (late,) = await asyncio.gather(engine.sample(draw()), return_exceptions=True)
        await engine.close()
        return late, *engine._endpoints.values()

    with serving(lambda _: replace(OK, delay=5.0)) as server:
        late, endpoint = asyncio.run(work(server.url))
    assert isinstance(late, Late) and "no answer within 0.05 s" in str(late)
    assert endpoint.limit == 8 and endpoint.in_flight == 0


def test_a_connection_that_does_not_come_is_told_with_its_own_limit():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as held:
        for _ in range(4):  # the kernel answers no more of them than wait to be accepted
            other = held.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        (failed,) = samples([url], 1, agent(), connect_timeout=0.05, timeout=60.0)
    assert isinstance(failed, Refused) and "no connection within 0.05 s" in str(failed)


def test_a_refused_connection_is_unavailable():
    with serving(lambda _: OK) as server:
        url = server.url
    (failed,) = samples([url], 1, agent())
    assert isinstance(failed, Refused) and "cannot be reached" in str(failed)


def test_a_broken_endpoint_holds_nobody_for_long():
    results, asked = ask(
        refusal("boom", 500), 300, start=2, pause=0.01
    )  # one at a time would outlast the test
    assert all(isinstance(result, Unavailable) and "500: boom" in str(result) for result in results)
    assert len(asked) < 10


def test_a_dead_endpoint_holds_those_who_wait_until_it_is_given_up():
    with serving(lambda _: OK) as server:
        url = server.url
    results = samples([url], 300, agent(), start=2, pause=0.01, longest_wait=0.1)
    refused = [result for result in results if isinstance(result, Refused)]
    assert 3 <= len(refused) < 10
    assert all(isinstance(result, Permanent) for result in results if result not in refused)


def test_the_share_of_a_dead_replica_goes_to_the_live_one():
    with serving(lambda _: OK) as dead:
        pass
    with serving(lambda _: replace(OK, delay=0.002)) as live:
        results = samples([dead.url, live.url], 60, agent(), start=4, pause=30.0)
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
        _, seen = run(tmp_path, parallel, engine=Closing(engine), problems=40, concurrency=40)
    assert not seen.reasons
    assert next(refused) < 40 * 8 / 4


def test_a_refusal_halves_the_limit_once_for_all_that_were_sent_before():
    def work() -> None:
        one = endpoint()
        for _ in range(8):
            one.failed(Refused("no"), sent=1.0, now=2.0)
        assert one.limit == 4 and one.resume_at == 3.0
        one.failed(Refused("no"), sent=3.0, now=4.0)
        assert one.limit == 2 and one.resume_at == 6.0
        one.in_flight = 2
        one.answered(6.0, in_time=True, sent=3.0)
        assert one.limit == 2
        one.answered(7.0, in_time=True)
        assert one.limit == 4  # at once half of what it was before the row
        one.in_flight = 4
        one.answered(7.0, in_time=True)
        assert one.limit == 4.25
        one.answered(7.0, in_time=False)
        assert one.limit == 4.25
        one.failed(Refused("no"), sent=7.0, now=8.0)
        assert one.limit == 2.125 and one.resume_at == 9.0  # the row of refusals was broken

    in_loop(work)


def test_a_refusal_alone_among_many_answers_says_nothing_of_the_load():
    def work() -> None:
        one = endpoint()
        for _ in range(60):
            one.answered(1.0, in_time=True)
        for error in (Refused("no"), Late("no")):
            one.failed(error, sent=1.0, now=2.0)
            assert one.limit == (8 if isinstance(error, Refused) else 4)

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
    assert isinstance(results[0].__cause__, Refused) and 7190 < results[0].__cause__.wait <= 7200
    for result in results:
        assert (
            type(result) is Permanent and "longest_wait=600" in str(result) and "daily limit" in str(result)
        )


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
    first = one.begin(10.0, 60.0, [one])
    second = one.begin(11.0, 60.0, [one])
    assert one.busy_seconds(13.0) - first._busy == 2.0  # one alone, then half of two
    one.end(13.0)
    assert one.busy_seconds(16.0) - second._busy == 4.0
