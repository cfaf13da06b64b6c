"""Ensembles of rewards: how scores combine, and what is stored."""

import asyncio
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import pytest
from helpers import SMALL, ToyTask

from toa_exp.core import Problem
from toa_exp.cost import Architecture, architecture
from toa_exp.draws import Score
from toa_exp.errors import BadInput, Unavailable
from toa_exp.patience import Patience
from toa_exp.rewards.base import Range
from toa_exp.rewards.ensemble import Ensemble
from toa_exp.scorer import Scorer
from toa_exp.store import Store

ASKED: list[tuple[str, str]] = []
FAILING: list[str] = []


class Named:
    """A reward that is a hash of its name and the text; it takes its time in any order."""

    def __init__(self, *, name: str, scale: float = 1.0, read: bool = True, task: object = None) -> None:
        self._name, self._scale = name, scale
        self.shape: Architecture | None = architecture(SMALL) if read else None
        self.range = Range(-scale, scale)

    def fingerprint(self) -> Mapping[str, object]:
        return {"reward": "named", "name": self._name}

    async def score(self, problem: Problem, text: str) -> Score:
        ASKED.append((self._name, text))
        await asyncio.sleep(Random().random() / 500)
        if text in FAILING:
            raise Unavailable("not now")
        value = self._scale * Random(f"{self._name} {problem.id} {text}").gauss(1.0, 1.0)
        return Score(value, len(text) * len(self._name), 0.1)

    async def close(self) -> None:
        ASKED.append((self._name, "closed"))


class Referenced(ToyTask):
    """Problems with references that differ."""

    def pairs(self) -> Iterator[tuple[Problem, str, str]]:
        for problem in self.problems():
            yield problem, f"right {problem.id}", f"wrong {problem.id}"


TARGET = "test_ensemble.Named"
MEMBERS = {
    "a": {"_target_": TARGET, "name": "a"},
    "bb": {"_target_": TARGET, "name": "bb", "scale": 100.0},
    "c": {"_target_": TARGET, "name": "c", "scale": 0.1, "read": False},
}
TEXTS = [f"text {number}" for number in range(20)]
PROBLEM = Problem("p0", "Problem 0", "0")


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    ASKED.clear()
    FAILING.clear()


def ensemble(**changes: object) -> Ensemble:
    return Ensemble(**{"members": MEMBERS, "task": Referenced(40), **changes})


def score(path: Path, reward: object, texts: list[str] = TEXTS) -> list[Score]:
    async def run() -> list[Score]:
        store = Store(path)
        try:
            scorer = Scorer(reward, store, Patience(0, 0.0, lambda: None))
            return await asyncio.gather(*(scorer(PROBLEM, text) for text in texts))
        finally:
            store.close()

    return asyncio.run(run())


def member(name: str, text: str, problem: str = "p0") -> float:
    return MEMBERS[name].get("scale", 1.0) * Random(f"{name} {problem} {text}").gauss(1.0, 1.0)


def test_mean_and_minimum_are_those_of_the_members(tmp_path):
    for rule, combine in {"mean": statistics.fmean, "minimum": min}.items():
        found = score(tmp_path / rule, ensemble(rule=rule))
        expected = [combine([member(name, text) for name in MEMBERS]) for text in TEXTS]
        assert [each.reward for each in found] == pytest.approx(expected)


def test_stated_moments_standardise(tmp_path):
    moments = {name: {"mean": 0.5, "sd": scale} for name, scale in {"a": 1.0, "bb": 100.0, "c": 0.1}.items()}
    found = score(tmp_path / "s", ensemble(rule="standardised_mean", moments=moments))
    expected = [
        statistics.fmean((member(name, text) - 0.5) / each["sd"] for name, each in moments.items())
        for text in TEXTS
    ]
    assert [each.reward for each in found] == pytest.approx(expected)


def test_estimated_moments_are_those_of_the_tasks_pairs_whatever_the_order(tmp_path):
    made = {}
    for name in MEMBERS:
        texts = itertools.chain.from_iterable((f"right p{n}", f"wrong p{n}") for n in range(16))
        values = [member(name, text, text.split()[1]) for text in texts]
        made[name] = statistics.fmean(values), statistics.pstdev(values)
    expected = [
        statistics.fmean((member(name, text) - mean) / sd for name, (mean, sd) in made.items())
        for text in TEXTS
    ]
    found = []
    for seed in range(3):
        texts = Random(seed).sample(TEXTS, len(TEXTS))
        scores = score(tmp_path / str(seed), ensemble(rule="standardised_mean"), texts)
        by_text = dict(zip(texts, (each.reward for each in scores), strict=True))
        found.append([by_text[text] for text in TEXTS])
    assert found[0] == found[1] == found[2]
    assert found[0] == pytest.approx(expected)


def test_each_members_scores_are_stored_under_its_own_key(tmp_path):
    score(tmp_path / "s", ensemble())
    assert len(ASKED) == len(TEXTS) * len(MEMBERS)
    ASKED.clear()
    score(tmp_path / "s", ensemble())
    alone = score(tmp_path / "s", Named(name="a"))
    score(tmp_path / "s", ensemble(rule="minimum"))
    score(tmp_path / "s", ensemble(rule="mean", members={key: MEMBERS[key] for key in ("a", "c")}))
    assert ASKED == []
    assert [each.reward for each in alone] == [member("a", text) for text in TEXTS]
    score(tmp_path / "s", ensemble(rule="standardised_mean"))
    assert len(ASKED) == len(set(ASKED)) == 16 * 2 * len(MEMBERS)  # the warm-up's


def test_a_member_that_fails_leaves_no_score_and_the_others_are_kept(tmp_path):
    score(tmp_path / "s", ensemble(), TEXTS[:3])
    FAILING.append("text 3")
    with pytest.raises(Unavailable):
        score(tmp_path / "s", ensemble(), TEXTS[:4])
    FAILING.clear()
    ASKED.clear()
    score(tmp_path / "s", ensemble(), TEXTS[:4])
    assert {text for _, text in ASKED} == {"text 3"}


def test_it_scores_without_a_store_too():
    async def run() -> Score:
        reward = ensemble(rule="standardised_mean")
        found = await reward.score(PROBLEM, "text 1")
        await reward.close()
        return found

    assert math.isfinite(asyncio.run(run()).reward)
    assert [name for name, text in ASKED if text == "closed"] == ["c", "bb", "a"]


def test_flops_are_those_of_the_members_that_run_a_model():
    reward = ensemble()
    one = architecture(SMALL)
    assert reward.shape.flops(10, 0) == 2 * one.flops(10, 0)
    tokens = {"a": 10, "bb": 20, "c": 999}
    combined = reward.combine({name: Score(0.0, count, 0.0) for name, count in tokens.items()})
    assert combined.tokens == 15


def test_identity_is_the_members_and_not_their_names():
    renamed = {"z": MEMBERS["a"], "y": MEMBERS["bb"], "x": MEMBERS["c"]}
    assert ensemble(members=renamed).fingerprint() == ensemble().fingerprint()
    others = [
        ensemble(rule="minimum"),
        ensemble(rule="standardised_mean"),
        ensemble(rule="standardised_mean", calibration=4),
        ensemble(rule="standardised_mean", moments={n: {"mean": 0.0, "sd": 1.0} for n in MEMBERS}),
    ]
    seen = {str(reward.fingerprint()) for reward in [ensemble(), *others]}
    assert len(seen) == 5


def test_ranges_that_differ_are_warned_of(caplog):
    ensemble()
    assert "standardised_mean makes them alike" in caplog.text
    assert ensemble(rule="minimum").range == Range(-100.0, 0.1)
    assert ensemble(rule="standardised_mean").range == Range(-3.0, 3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "median"}, "mean, minimum, standardised_mean"),
        ({"members": {}}, r"\+reward@reward.members"),
        ({"rule": "standardised_mean", "moments": {"a": {"mean": 0.0, "sd": 1.0}}}, "which are a, bb, c"),
        ({"rule": "standardised_mean", "moments": {n: {"mean": 0.0, "sd": 0.0} for n in MEMBERS}}, "above 0"),
        ({"members": {"a": {"_target_": TARGET}}}, "name"),
        ({"members": {"a": {"_target_": TARGET, "name": "a", "nmae": 1}}}, "nmae"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises((BadInput, TypeError), match=message):
        ensemble(**changes)


def test_a_task_without_references_needs_stated_moments():
    class Open(ToyTask):
        def problems(self) -> Iterator[Problem]:
            yield from (Problem(str(n), "Write.") for n in range(5))

    with pytest.raises(BadInput, match=r"reward\.moments"):
        ensemble(rule="standardised_mean", task=Open(5))


def test_a_member_that_reads_no_references_is_tried_on_none():
    simulated = "toa_exp.rewards.simulator.SimulatedReward"
    members = {
        "a": {"_target_": TARGET, "name": "a"},
        "b": {"_target_": simulated, "noise": 0.4, "scale": 0.1, "tokens_per_second": 1.0},
    }
    assert ensemble().warms_up and not ensemble(members=members).warms_up
    with pytest.raises(BadInput, match=r"reward\.moments"):
        ensemble(members=members, rule="standardised_mean")
