"""Whether a cluster has room for what a run asks of it."""

import itertools
import math
from contextlib import nullcontext
from random import Random

import pytest

from toa_exp.errors import BadInput
from toa_exp.runners.models import check_gpus
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


BIG, SMALL, WIDE = NODE | {"big": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"GPU": 8.0}


def gpus(replicas, each, **more):
    return Share(replicas=replicas, num_gpus=each, **more)


@pytest.mark.parametrize(
    ("nodes", "shares"),
    [
        ([BIG, NODE], [gpus(1, 4), gpus(1, 4, resources={"big": 1})]),
        ([NODE, BIG], [gpus(1, 4), gpus(1, 4, resources={"big": 1})]),
        ([NODE, SMALL], [gpus(1, 1), gpus(3, 1), gpus(1, 1, num_cpus=8)]),
        ([WIDE, WIDE], [gpus(1, 4), gpus(2, 3), gpus(3, 2)]),
        ([NODE] * 100, [gpus(50, 3), gpus(100, 2), gpus(50, 1)]),
        ([], [Share()]),
    ],
)
def test_what_can_be_placed_in_some_way_is_not_refused(nodes, shares):
    check(nodes, [(str(number), share) for number, share in enumerate(shares)])


def test_what_has_room_for_each_alone_is_refused_where_not_for_all():
    with pytest.raises(BadInput, match="no room for two"):  # there are 8 GPUs, and one is left on each node
        check([NODE, NODE], [("two", gpus(1, 2)), ("three", gpus(2, 3))])


@pytest.mark.parametrize("seed", range(50))
def test_the_search_for_room_finds_what_trying_everything_finds(seed):
    rng = Random(seed)
    most = {"GPU": 6, "CPU": 4, "big": 1}
    nodes = [{name: rng.randint(0, most[name]) for name in most} for _ in range(rng.randint(1, 3))]
    shares = [
        gpus(rng.randint(1, 2), rng.randint(0, 3), num_cpus=cpus, resources={"big": rng.randint(0, 1)})
        for cpus in rng.choices(range(3), k=rng.randint(1, 4))
    ]
    wanted = [share.needs() for share in shares for _ in range(share.replicas)]
    ways = itertools.product(range(len(nodes)), repeat=len(wanted))
    with nullcontext() if any(holds(nodes, wanted, way) for way in ways) else pytest.raises(BadInput):
        check(nodes, [(str(number), share) for number, share in enumerate(shares)])


def holds(nodes, wanted, way):
    """Whether nodes hold what is wanted where each is on the node that `way` says."""
    left = [dict(node) for node in nodes]
    for place, needs in zip(way, wanted, strict=True):
        for name, amount in needs.items():
            left[place][name] -= amount
    return all(amount >= 0 for node in left for amount in node.values())


def test_no_share_is_negative():
    with pytest.raises(BadInput, match="num_gpus=-1"):
        Share(num_gpus=-1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_gpus": -1}, r"^runner\.agents\.qwen\.num_gpus=-1: give a number, 0 or more"),
        ({"num_gpus": 1.5}, r"^runner\.agents\.qwen\.num_gpus=1\.5: .*give 1 or 2$"),
        ({"num_cpus": math.nan}, r"qwen\.num_cpus=nan: give a number"),
        ({"num_gpu": 1}, r"field of runner\.agents\.qwen .*Did you mean 'num_gpus'\?"),
        ({"owner": "me"}, "unknown field of runner.agents.qwen"),
        ({"resources": None}, r"qwen\.resources=null: expected a mapping"),
        ({"resources": {"fast": "one"}}, r"qwen\.resources\.fast=one: expected float or int"),
        ({"resources": {"fast": -1}}, r"qwen\.resources\.fast=-1: give a number"),
        ({"resources": {"GPU": 1}}, r"qwen\.resources\.GPU: give runner\.agents\.qwen\.num_gpus instead"),
    ],
)
def test_what_ray_cannot_set_aside_is_named_with_its_place(fields, message):
    with pytest.raises(BadInput, match=message):
        Share.of(fields, "runner.agents.qwen")


VLLM = {"_target_": "toa_exp.engines.vllm.Vllm"}
TRANSFORMERS = {"_target_": "toa_exp.engines.transformers.Transformers", "device": "auto"}
ENDPOINT = {"_target_": "toa_exp.engines.openai.OpenAI"}
CLASSIFIER = {"_target_": "toa_exp.rewards.classifier.Classifier"}
COMET = {"_target_": "toa_exp.rewards.comet.Comet", "devices": "auto"}
ENSEMBLE = {"_target_": "toa_exp.rewards.ensemble.Ensemble", "members": {"one": CLASSIFIER}}
JUDGE = {"_target_": "toa_exp.rewards.judge.Judge", "engine": TRANSFORMERS}


@pytest.mark.parametrize(
    ("part", "share", "message"),
    [
        (VLLM, Share(), "num_gpus=0.*Give it 'runner.agents={a: {replicas: 1, num_gpus: 1}}', or more$"),
        (VLLM, Share(replicas=0, num_gpus=1), "replicas=0"),
        (VLLM, Share(num_gpus=0.5), "num_gpus=0.5 and is run by vLLM"),
        (TRANSFORMERS, Share(), "device=cpu"),
        (CLASSIFIER, Share(), "num_gpus=0"),
        (ENSEMBLE, Share(), "num_gpus=0"),
        (JUDGE, Share(), "num_gpus=0"),
        (JUDGE | {"engine": VLLM}, Share(num_gpus=0.5), "num_gpus=0.5 and is run by vLLM"),
    ],
)
def test_a_model_has_gpus_to_itself(part, share, message):
    with pytest.raises(BadInput, match=f"agent 'a' .*{message}"):
        check_gpus("agent 'a'", share, part, "a")


@pytest.mark.parametrize(
    ("part", "share"),
    [
        (VLLM, Share(num_gpus=2)),
        (TRANSFORMERS, Share(num_gpus=0.5)),
        (TRANSFORMERS | {"device": "cpu"}, Share()),
        (ENDPOINT, Share(replicas=0)),
        (ENSEMBLE | {"members": {"one": CLASSIFIER | {"device": "cpu"}}}, Share()),
        (JUDGE | {"engine": ENDPOINT}, Share()),
        (JUDGE | {"engine": TRANSFORMERS | {"device": "cpu"}}, Share()),
    ],
)
def test_what_needs_no_gpu_of_its_own_may_do_without(part, share):
    check_gpus("agent 'a'", share, part, "a")


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        (CLASSIFIER, "reward.device=cpu"),
        (COMET, "reward.devices=cpu"),
        (JUDGE, "reward.engine.device=cpu"),
        (
            ENSEMBLE | {"members": {"one": CLASSIFIER, "two": JUDGE}},
            "reward.members.one.device=cpu reward.members.two.engine.device=cpu",
        ),
    ],
)
def test_what_keeps_a_reward_on_the_cpu_is_told(part, settings):
    with pytest.raises(BadInput, match=f"or keep it on the CPU, {settings}$"):
        check_gpus("the reward", Share(), part, None)
