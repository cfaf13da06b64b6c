"""The engine of remote endpoints, against a server on loopback."""

import asyncio
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from fake_endpoint import Answer, completion, refusal, serving
from helpers import SMALL, ToyEngine, ToyReward, cli, lines, run
from remote import (
    ENSEMBLE,
    FAST,
    KEY,
    OK,
    SHAPE,
    Closing,
    agent,
    arguments,
    ask,
    draw,
    error,
    seeded,
    trajectory,
)
from test_config import compose

from toa_exp.build import build
from toa_exp.core import Usage
from toa_exp.draws import Sample
from toa_exp.engines.mixed import Mixed
from toa_exp.engines.openai import OpenAI
from toa_exp.ensemble import agents_of
from toa_exp.errors import BadInput
from toa_exp.methods.parallel import parallel

DOCS = Path(__file__).parents[2] / "docs/engines.md"


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


@pytest.mark.parametrize("part", ["engine", "reward"])
@pytest.mark.parametrize(
    "override", sorted(set(re.findall(r"`engine\.((?:start|most)=\d+)`", DOCS.read_text())))
)
def test_the_limits_that_the_documentation_names_can_be_given(override, part):
    config = compose("engine=openai", "reward=http", "reward.model=m", f"{part}.{override}")
    with serving(lambda _: replace(OK, delay=0.001)) as server:
        config.engine.base_url = config.reward.base_url = server.url
        build(config.reward, "reward", task=None)
        engine = build(config.engine, "engine", agents={"ash": agent()})

        async def work() -> list[Sample]:
            draws = [engine.sample(draw(number)) for number in range(40)]
            try:
                return await asyncio.gather(*draws)
            finally:
                await engine.close()

        assert {sample.text for sample in asyncio.run(work())} == {"4"}
    if part == "engine":
        assert server.most <= int(override.rpartition("=")[2])


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
        (agent(), {"base_url": "http://.../v1"}, "no URL such as"),
        (agent(), {"base_url": "http://me:hidden@x/v1"}, "would end up in logs"),
        (agent(), {"base_url": "http://x/v1/chat/completions"}, "must end before"),
        (agent(), {"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is empty or not set"),
        (agent(), {"start": 0}, "1 <= start <= most"),
        (agent(), {"most": 0}, "engine.most=0: give 1 <= start <= most"),
        (agent(), {"omit": ["sed"]}, "Did you mean 'seed'"),
        (agent(), {"omit": "seed"}, "omit=seed is no list; give omit=[seed]"),
        (agent(), {"token_limit": "max"}, "max_completion_tokens"),
        (agent(), {"timeout": 0.0}, "seconds above 0"),
        (agent(model="simulated"), {}, "engine=simulator"),
        (agent(options={"base_ulr": "http://x"}), {}, "Did you mean 'base_url'"),
        (agent(top_p=0.0), {}, "top_p above 0"),
        (agent(temperature="hot"), {}, "temperature is at least 0"),
        (agent(temperature=math.nan), {}, "temperature is at least 0"),
        (agent(max_tokens=1.5), {}, "max_tokens at least 1, an integer"),
        (agent(), {"timeout": math.nan}, "seconds above 0"),
        (agent(), {"pause": -1.0}, "engine.pause and engine.longest_wait are seconds"),
        (agent(options={"base_url": 5}), {}, "agent 'ash': base_url=5 is no URL, nor a list of them"),
        (agent(), {"key_env": "sk-hidden0123456789abcdef"}, "looks like a key itself"),
        (agent(), {"key_env": "hf_hidden0123456789abcdefghijkl"}, "looks like a key itself"),
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
        idle = "+engine@engines.idle=transformers"  # which no agent uses
        result = cli(*base, "+engine@engines.sim=simulator", idle, cwd=tmp_path)
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
