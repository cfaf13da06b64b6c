"""Selection: which sample is the answer."""

import asyncio
import json
import math
from functools import partial
from itertools import permutations

import pytest
from helpers import ToyTask

from toa_exp.core import Reply, Request, Usage
from toa_exp.errors import BadInput
from toa_exp.metrics.coverage import pass_at_k
from toa_exp.selection import best_reward, last, majority_vote, pick, reward_weighted_vote

A = Request("a")


def replies(*pairs):
    return [
        Reply(A, text, reward, Usage(1, 1), None if reward > -math.inf else "failed")
        for text, reward in pairs
    ]


def canonical(text):
    return text[0] if text[0].isdigit() else None


CASES = replies(("1 x", 0.1), ("2 y", 0.9), ("1 z", 0.3), ("none", 0.95), ("1", -math.inf))


@pytest.mark.parametrize(
    ("select", "index"), [(best_reward, 3), (last, 3), (majority_vote, 2), (reward_weighted_vote, 1)]
)
def test_each_chooses_its_own(select, index):
    assert select(CASES, canonical) == index


def test_a_weighted_vote_goes_from_majority_to_reward_as_the_temperature_falls():
    assert reward_weighted_vote(CASES, canonical, temperature=10) == 2
    assert reward_weighted_vote(CASES, canonical, temperature=0.05) == 1


def test_a_sum_of_rewards_takes_no_negative_ones():
    with pytest.raises(BadInput, match="temperature"):
        reward_weighted_vote(replies(("1", -0.5)), canonical)
    assert reward_weighted_vote(replies(("1", -0.5), ("2", 0.5)), canonical, temperature=1.0) == 1


WEIGHTED = partial(reward_weighted_vote, temperature=1.0)


@pytest.mark.parametrize("select", [best_reward, last, majority_vote, WEIGHTED])
def test_failed_replies_are_never_chosen(select):
    assert select([], canonical) is None
    assert select(replies(("1", -math.inf)), canonical) is None
    assert select(replies(("1", -5.0), ("1", -math.inf)), canonical) == 0


@pytest.mark.parametrize("select", [best_reward, majority_vote, reward_weighted_vote])
def test_the_first_wins_a_tie(select):
    assert select(replies(("1", 0.5), ("2", 0.5)), canonical) == 0


def test_votes_without_any_answer_choose_none():
    assert majority_vote(replies(("x", 0.1), ("y", 0.2)), canonical) is None
    assert reward_weighted_vote(replies(("x", 0.1), ("y", 0.2)), canonical) is None


@pytest.mark.parametrize("select", [majority_vote, partial(majority_vote), reward_weighted_vote, WEIGHTED])
def test_votes_are_counted_as_the_task_compares_answers(select):
    class Halves(ToyTask):
        async def ballots(self, texts):
            return [str(float(eval(text))) for text in texts]

    cast = replies(("3", 0.6), ("1/2", 0.5), ("0.5", 0.4))
    assert asyncio.run(pick(select, cast, Halves(1))) == 1
    assert asyncio.run(pick(best_reward, cast, Halves(1))) == 0


def test_accuracies_are_the_exact_expectations_over_subsets(shared):
    """Every order of every subset: then ties, of which the first wins, are broken uniformly."""
    lines = (shared / "data/coverage/best_of_k_exact.jsonl").read_text().splitlines()
    compared = 0
    for case in map(json.loads, lines):
        samples = replies(*zip(case["answers"], case["rewards"], strict=True))
        for k, expected in case["by_k"].items():
            if math.perm(len(samples), int(k)) > 2000:
                continue
            orders = list(permutations(samples, int(k)))
            found = dict.fromkeys(("best", "vote", "any", "reward"), 0)
            for order in orders:
                best = order[best_reward(order, str)]
                found["best"] += best.text == case["gold"]
                found["reward"] += best.reward
                found["vote"] += order[majority_vote(order, str)].text == case["gold"]
                found["any"] += any(reply.text == case["gold"] for reply in order)
            found = {name: value / len(orders) for name, value in found.items()}
            assert found["best"] == pytest.approx(expected["best_of_k_accuracy"])
            assert found["reward"] == pytest.approx(expected["expected_max_reward"])
            assert found["vote"] == pytest.approx(expected["majority_accuracy_ties_uniform"])
            right = sum(case["correct"])
            assert found["any"] == pytest.approx(expected["pass_at_k"])
            assert pass_at_k(len(samples), right, int(k)) == pytest.approx(expected["pass_at_k"])
            compared += 1
    assert compared > 20
