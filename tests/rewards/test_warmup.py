"""The trial of a reward before a run, and the check of tau."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers import ToyTask, cli

from toa_exp.core import Problem
from toa_exp.draws import Score
from toa_exp.errors import BadInput, Permanent
from toa_exp.patience import Patience
from toa_exp.rewards.base import Range
from toa_exp.rewards.warmup import _shown, check_tau, pairs, warm_up_of
from toa_exp.scorer import Scorer
from toa_exp.store import Store

DEFAULT = {"prompt": "Say yes.", "good": "Yes.", "bad": "No."}


class Scripted:
    """A reward that gives texts the scores in `scores`."""

    shape = None

    def __init__(self, scores: Mapping[str, float], range: Range | None = None) -> None:
        self.scores = scores
        self.range = range
        self.asked: list[str] = []

    def fingerprint(self) -> Mapping[str, str]:
        return {"reward": "scripted"}

    async def score(self, problem: Problem, text: str) -> Score:
        self.asked.append(text)
        await asyncio.sleep(0.001)
        if text not in self.scores:
            raise Permanent("no score")
        return Score(self.scores[text], 1, 0.0)

    async def close(self) -> None:
        pass


class Open(ToyTask):
    """Problems without references."""

    def problems(self):
        yield from (Problem(str(n), "Write.") for n in range(5))


def score(path: Path, reward: Scripted, texts: list[str], task: object, tau: float | None = None) -> None:
    async def run() -> None:
        store = Store(path)
        try:
            first = warm_up_of(reward, task, DEFAULT, tau)
            scorer = Scorer(reward, store, Patience(0, 0.0, lambda: None), first=first)
            await asyncio.gather(*(scorer(Problem("p0", "Problem 0", "0"), text) for text in texts))
        finally:
            store.close()

    asyncio.run(run())


def test_a_reward_that_is_the_wrong_way_round_is_warned_of(tmp_path, caplog):
    good = Scripted({"0": 2.0, "1": 1.0, "text": 0.0})
    score(tmp_path / "good", good, ["text", "text"], ToyTask(3))
    assert caplog.text == "" and good.asked == ["0", "1", "text"]
    bad = Scripted({"0": 1.0, "1": 1.0, "text": 0.0})
    score(tmp_path / "bad", bad, ["text"], ToyTask(3))
    assert "check that it is the right one for this task" in caplog.text


def test_a_long_answer_is_shortened_and_keeps_its_quotes():
    assert _shown("it's\n") == '"it\'s\\n"'
    assert _shown("yes " * 100) == repr("yes " * 15 + "...")


def test_an_answer_equal_to_the_trials_does_not_wait_for_itself(tmp_path):
    reward = Scripted({"0": 2.0, "1": 1.0})
    score(tmp_path / "s", reward, ["0", "1", "0"], ToyTask(3))
    assert sorted(reward.asked) == ["0", "1"]


def test_a_rerun_tries_nothing_and_a_store_with_all_scores_does_not_ask(tmp_path):
    reward = Scripted({"0": 2.0, "1": 1.0, "text": 0.0, "more": 3.0})
    score(tmp_path / "s", reward, ["text"], ToyTask(3))
    reward.asked.clear()
    score(tmp_path / "s", reward, ["text"], ToyTask(3))
    assert reward.asked == []
    score(tmp_path / "s", reward, ["more"], ToyTask(3))
    assert reward.asked == ["more"]


def test_without_references_there_is_a_pair_of_its_own(tmp_path):
    reward = Scripted({"Yes.": 1.0, "No.": 0.0, "text": 0.0})
    score(tmp_path / "s", reward, ["text"], Open(5))
    assert reward.asked == ["Yes.", "No.", "text"]
    assert list(pairs(Open(5))) == []


def test_of_several_references_the_first_is_tried():
    class Several(ToyTask):
        def problems(self):
            yield from (Problem(str(n), "Translate.", [f"first {n}", f"second {n}"]) for n in range(3))

    assert [(good, bad) for _, good, bad in pairs(Several(3))] == [
        ("first 0", "first 1"),
        ("first 1", "first 2"),
    ]


def test_a_trial_that_fails_is_no_reason_to_stop(tmp_path, caplog):
    score(tmp_path / "s", Scripted({"text": 0.0}), ["text"], ToyTask(3))
    assert "could not be tried" in caplog.text


def test_there_may_be_none(tmp_path):
    reward = Scripted({"text": 0.0})
    assert warm_up_of(reward, ToyTask(3), None, None) is None
    reward.warms_up = False
    assert warm_up_of(reward, ToyTask(3), DEFAULT, None) is None
    with pytest.raises(BadInput, match="bad, good, prompt"):
        warm_up_of(Scripted({}), ToyTask(3), {"prompt": "x"}, None)


@pytest.mark.parametrize(
    ("tau", "range", "warned"),
    [
        (0.1, Range(0.0, 0.2), False),  # ArmoRM as in the paper
        (1.0, Range(0.0, 1.0), False),  # CometKiwi as in the paper
        (1.0, Range(-5.0, 5.0), False),  # Qwen2.5-Math-RM as in the paper
        (0.1, Range(0.0, 1.0), False),
        (0.1, Range(-30.0, 30.0), True),
        (10.0, Range(0.0, 0.2), True),
        (None, Range(-30.0, 30.0), False),
        (0.1, None, False),
    ],
)
def test_a_tau_that_is_far_off_the_range_is_warned_of(tau, range, warned, caplog):
    check_tau(tau, Scripted({}, range))
    assert ("method.tau" in caplog.text) == warned


def test_an_unknown_range_is_judged_by_the_trials_scores(tmp_path, caplog):
    reward = Scripted({"0": 20.0, "1": -3.0, "text": 0.0})
    score(tmp_path / "s", reward, ["text"], ToyTask(3), tau=0.1)
    assert "method.tau=0.1 is far off" in caplog.text and "from 5 to 20" in caplog.text


def test_a_run_warns_once_and_not_again(tmp_path, questions):
    arguments = [
        "run", "task=jsonl", f"task.path={questions}", "ensemble=simulated", "reward=simulated",
        "method=toa", "method.tau=0.001", "budget.samples=[2]", "tracking.mode=disabled",
    ]  # fmt: skip
    first = cli(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "method.tau=0.001 is far off" in first.stderr
    [run] = (tmp_path / "results").rglob("trajectories.jsonl")
    assert json.loads(run.read_text().splitlines()[0])["answer"] is not None
