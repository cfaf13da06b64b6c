"""Selection: which sample is the answer."""

import math
from functools import partial

import pytest

from toa_exp.core import Reply, Request, Usage
from toa_exp.errors import BadInput
from toa_exp.selection import best_reward, last, majority_vote, reward_weighted_vote

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


def test_votes_without_any_answer_fall_back_on_the_reward():
    assert majority_vote(replies(("x", 0.1), ("y", 0.2)), canonical) == 1
