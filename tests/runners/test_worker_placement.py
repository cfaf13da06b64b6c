"""Whether a cluster has room for what a run asks of it."""

import math

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
ENSEMBLE = {"_target_": "toa_exp.rewards.ensemble.Ensemble", "members": {"one": CLASSIFIER}}


@pytest.mark.parametrize(
    ("part", "share", "message"),
    [
        (VLLM, Share(), "num_gpus=0.*Give it 'runner.agents={a: {replicas: 1, num_gpus: 1}}', or more$"),
        (VLLM, Share(replicas=0, num_gpus=1), "replicas=0"),
        (VLLM, Share(num_gpus=0.5), "num_gpus=0.5 and is run by vLLM"),
        (TRANSFORMERS, Share(), "device=cpu"),
        (CLASSIFIER, Share(), "num_gpus=0"),
        (ENSEMBLE, Share(), "num_gpus=0"),
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
    ],
)
def test_what_needs_no_gpu_of_its_own_may_do_without(part, share):
    check_gpus("agent 'a'", share, part, "a")
