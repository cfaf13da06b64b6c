"""The runner: identity of samples, order of replies, retries, parking, resuming."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import Seen, ToyEngine, ToyReward, lines, run

from toa_exp.budgets import Budgets
from toa_exp.core import Request
from toa_exp.draws import Sample
from toa_exp.errors import MethodError, Permanent, StoreError, Unavailable
from toa_exp.methods.moa import moa
from toa_exp.methods.parallel import parallel
from toa_exp.methods.prs import prs
from toa_exp.methods.random import random
from toa_exp.methods.sequential import sequential
from toa_exp.methods.toa import toa

METHODS = [random, prs, parallel, sequential, moa, toa]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_neither_order_of_replies_nor_concurrency_matters(tmp_path, method):
    expected, _ = run(tmp_path / "plain", method, concurrency=1)
    for shuffle in range(2):
        engine = ToyEngine(shuffle=shuffle)
        text, _ = run(tmp_path / f"shuffled{shuffle}", method, engine=engine, concurrency=6)
        assert text == expected


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_rerun_draws_and_scores_nothing(tmp_path, method):
    first, _ = run(tmp_path, method)
    engine, reward = ToyEngine(), ToyReward()
    again, _ = run(tmp_path, method, engine=engine, reward=reward)
    assert again == first
    assert engine.asked == reward.asked == []


def test_lines_say_what_was_done(tmp_path):
    text, _ = run(tmp_path, prs, problems=1, budgets=Budgets("samples", (2, 4), 9))
    two, four = lines(text)
    assert [two["problem"], two["budget"], four["budget"]] == ["p0", 2, 4]
    assert [sample["template"] for sample in four["samples"]] == ["direct", "direct", "refine", "refine"]
    best = max(range(2), key=lambda index: four["samples"][index]["reward"])
    assert [sample["parents"] for sample in four["samples"]] == [[], [], [best], [best]]
    rewards = [sample["reward"] for sample in four["samples"]]
    assert four["answer"] == rewards.index(max(rewards))
    for name in ("prompt_tokens", "completion_tokens", "flops"):
        assert four["cost"][name] == sum(sample[name] for sample in four["samples"])
    assert four["cost"]["samples"] == 4 and four["cost"]["usd"] is None
    assert four["samples"][0]["draw"] == two["samples"][0]["draw"]


def test_methods_and_budgets_share_draws(tmp_path):
    engine = ToyEngine()
    for method in METHODS:
        run(tmp_path, method, engine=engine, problems=2, budgets=Budgets("samples", (4, 8, 16), 16))
    assert len(engine.asked) == len(set(engine.asked))
    charged = 6 * 2 * (4 + 8 + 16)
    assert len(engine.asked) < 0.6 * charged


def test_occurrences_of_one_request_are_different_draws(tmp_path):
    text, _ = run(tmp_path, random, problems=1, budgets=Budgets("samples", (8,), 8))
    assert len({sample["draw"] for sample in lines(text)[0]["samples"]}) == 8


def test_another_seed_is_another_set_of_draws(tmp_path):
    zero, _ = run(tmp_path, random)
    one, _ = run(tmp_path, random, seed=1)
    drawn = [{s["draw"] for line in lines(text) for s in line["samples"]} for text in (zero, one)]
    assert not drawn[0] & drawn[1]


class Flaky(ToyEngine):
    """Fails at every draw `faults` times before it answers."""

    def __init__(self, faults: int, error: type[Unavailable] = Unavailable) -> None:
        super().__init__()
        self.faults, self.error = faults, error
        self.tries: dict[bytes, int] = {}

    async def sample(self, draw):
        self.tries[draw.key] = self.tries.get(draw.key, 0) + 1
        if self.tries[draw.key] <= self.faults:
            raise self.error("the server is away")
        return await super().sample(draw)


def test_infrastructure_faults_are_tried_again(tmp_path):
    expected, _ = run(tmp_path / "plain", toa)
    text, seen = run(tmp_path / "flaky", toa, engine=Flaky(2), retries=2)
    assert text == expected and not seen.reasons


@pytest.mark.parametrize("error", [Unavailable, Permanent])
def test_a_problem_that_cannot_be_finished_is_parked_and_resumed(tmp_path, error):
    class Down(Flaky):
        async def sample(self, draw):
            if draw.problem.id == "p2":
                return await super().sample(draw)
            return await ToyEngine.sample(self, draw)

    eight = Budgets("samples", (8,), 8)
    expected, _ = run(tmp_path / "plain", toa, budgets=eight)
    engine = Down(99, error)
    text, seen = run(tmp_path / "down", toa, engine=engine, retries=1, budgets=eight)
    assert seen.reasons == {"p2": "the server is away"}
    assert [line for line in lines(expected) if line["problem"] != "p2"] == lines(text)
    tries = set(engine.tries.values())
    assert tries == ({1} if error is Permanent else {2})
    engine = ToyEngine()
    text, seen = run(tmp_path / "down", toa, engine=engine, budgets=eight)
    assert text == expected and not seen.reasons
    asked = {sample["draw"] for line in lines(text) if line["problem"] == "p2" for sample in line["samples"]}
    assert {key.hex() for key in engine.asked} <= asked


def test_a_typed_failure_costs_but_is_neither_parent_nor_answer(tmp_path):
    class Overflowing(ToyEngine):
        async def sample(self, draw):
            sample = await super().sample(draw)
            if int.from_bytes(draw.key, "big") % 3 == 0:
                return Sample("", replace(sample.usage, completion_tokens=0), 0.1, "context_window")
            return sample

    reward = ToyReward()
    text, _ = run(tmp_path, toa, engine=Overflowing(), reward=reward, budgets=Budgets("samples", (12,), 12))
    failed = 0
    for line in lines(text):
        samples = line["samples"]
        bad = {index for index, sample in enumerate(samples) if sample["failure"]}
        failed += len(bad)
        assert all(samples[index]["reward"] is None for index in bad)
        assert line["answer"] not in bad
        assert not bad & {parent for sample in samples for parent in sample["parents"]}
        assert line["cost"]["samples"] == 12
        assert line["cost"]["prompt_tokens"] == sum(sample["prompt_tokens"] for sample in samples)
    assert failed and "" not in reward.asked


def test_a_problem_without_any_usable_sample_has_no_answer_and_no_metrics(tmp_path):
    class Failing(ToyEngine):
        async def sample(self, draw):
            return Sample("", (await super().sample(draw)).usage, 0.1, "content_filter")

    text, seen = run(tmp_path, sequential, engine=Failing(), problems=1)
    assert [(line["answer"], line["metrics"]) for line in lines(text)] == [(None, None)] * 2
    assert seen.all[0].best_reward is None


def test_a_rerun_is_equal_to_the_byte_whatever_number_a_reward_gives(tmp_path):
    class Whole(ToyReward):
        async def score(self, problem, text):
            return replace(await super().score(problem, text), reward=-0.0 if "1" in text else 1)

    first, _ = run(tmp_path, toa, reward=Whole())
    again, _ = run(tmp_path, toa, reward=Whole())
    assert again == first


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_number_is_never_stored(tmp_path, value):
    class Broken(ToyReward):
        async def score(self, problem, text):
            return replace(await super().score(problem, text), reward=value)

    _, seen = run(tmp_path, random, reward=Broken(), problems=2)
    assert len(seen.reasons) == 2 and "the reward gave" in seen.reasons["p0"]
    reward = ToyReward()
    run(tmp_path, random, reward=reward, problems=2)
    assert reward.asked  # nothing had been scored


def _broken(requests):
    def method(problem, agents, budget, rng):
        replies = yield [Request(agents[0])]
        yield requests(replies, budget)

    return method


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (lambda replies, budget: [Request("a")] * budget, "asked for 9 samples of a budget of 8"),
        (lambda replies, budget: [Request("a")], "asked for 2 samples of a budget of 8"),
        (lambda replies, budget: [Request("nobody")], "'nobody'; the ensemble has a, b, c"),
        (lambda replies, budget: [], "no request"),
        (lambda replies, budget: [Request("a", "refine", (replace(replies[0]),))], "no reply of this search"),
    ],
)
def test_a_method_that_breaks_the_contract_is_stopped(tmp_path, requests, message):
    with pytest.raises(MethodError, match=message):
        run(tmp_path, _broken(requests), problems=1, budgets=Budgets("samples", (8,), 8))


def test_a_store_that_fails_ends_the_run(tmp_path, monkeypatch):
    async def refuse(self, draw, sample):
        raise StoreError("disk is full")

    monkeypatch.setattr("toa_exp.store.Store.put_draw", refuse)
    with pytest.raises(StoreError, match="disk is full"):
        run(tmp_path, random)


def test_a_slow_problem_holds_nobody_up_and_the_order_is_kept(tmp_path):
    finished: list[str] = []

    class FirstIsSlow(ToyEngine):
        async def sample(self, draw):
            await asyncio.sleep(0.2 if draw.problem.id == "p0" else 0)
            finished.append(draw.problem.id)
            return await super().sample(draw)

    text, _ = run(tmp_path, random, engine=FirstIsSlow(), problems=6, concurrency=2)
    assert finished[-1] == "p0"
    assert [line["problem"] for line in lines(text)] == [f"p{i}" for i in range(6) for _ in range(2)]


def test_so_many_are_begun_while_one_before_them_is_slow_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr("toa_exp.runner._AHEAD", 5)
    begun: set[str] = set()
    held: list[int] = []

    class FirstIsSlow(ToyEngine):
        async def sample(self, draw):
            begun.add(draw.problem.id)
            if draw.problem.id == "p0" and not held:
                await asyncio.sleep(0.2)
                held.append(len(begun))
            return await super().sample(draw)

    run(tmp_path, random, engine=FirstIsSlow(), problems=20, concurrency=2)
    assert 5 <= held[0] <= 8 and len(begun) == 20


def test_open_problems_are_bounded(tmp_path):
    class Counting(ToyEngine):
        most = 0
        open: ClassVar[set[str]] = set()

        async def sample(self, draw):
            self.open.add(draw.problem.id)
            Counting.most = max(Counting.most, len(self.open))
            await asyncio.sleep(0.001)
            self.open.discard(draw.problem.id)
            return await super().sample(draw)

    run(tmp_path, random, engine=Counting(), problems=20, concurrency=4)
    assert Counting.most == 4


def test_an_observer_sees_problems_in_order(tmp_path):
    _, seen = run(tmp_path, parallel, engine=ToyEngine(shuffle=1), concurrency=6)
    assert isinstance(seen, Seen)
    assert [outcome.problem for outcome in seen.all] == [f"p{i}" for i in range(6) for _ in range(2)]
    assert Path(tmp_path / "trajectories.jsonl").is_file()
