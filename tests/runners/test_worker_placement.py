"""Whether a cluster has room for what a run asks of it."""

import pytest

from toa_exp.errors import BadInput
from toa_exp.runners.placement import Share, check

NODE = {"CPU": 16.0, "GPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0}


def test_the_largest_are_placed_first():
    large, small = Share(replicas=2, num_gpus=3), Share(replicas=2, num_gpus=1)
    check([NODE, NODE], [("small", small), ("large", large), ("fraction", Share(num_cpus=0.5))])
    with pytest.raises(BadInput, match="no room for small"):  # 3 + 3 + 1 + 1 GPUs are all that there are
        check([NODE, NODE], [("small", Share(replicas=3, num_gpus=1)), ("large", large)])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([("agent 'a'", Share(replicas=9, num_gpus=1))], "no room for agent 'a', which takes 1 GPU"),
        ([("agent 'a'", Share(num_gpus=8))], "takes 8 GPU"),
        ([("agent 'a'", Share(replicas=3, num_gpus=3))], "nodes of 16 CPU, 4 GPU; 16 CPU, 4 GPU"),
        ([("the reward", Share(resources={"fast": 1}))], "the reward, which takes 1 fast"),
    ],
)
def test_what_does_not_fit_is_named(shares, message):
    with pytest.raises(BadInput, match=message):
        check([NODE, NODE], shares)


def test_no_share_is_negative():
    with pytest.raises(BadInput, match="num_gpus=-1"):
        Share(num_gpus=-1)
