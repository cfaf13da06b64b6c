"""engine=vllm as far as it needs no vLLM: settings, identity, turns to take, and what is refused."""

import asyncio
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_models import causal_model, classifier_model

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw
from toa_exp.engines import gpus
from toa_exp.engines.gpus import Ground
from toa_exp.engines.replay import Replay
from toa_exp.engines.seats import GIB, Gpu
from toa_exp.engines.transformers import Transformers
from toa_exp.engines.vllm import Vllm
from toa_exp.engines.vllm_settings import Settings
from toa_exp.ensemble import Agent, agents_of
from toa_exp.errors import BadInput, Unavailable
from toa_exp.job import _decided, share_gpus
from toa_exp.rewards.classifier import Classifier
from toa_exp.rewards.ensemble import Ensemble
from toa_exp.rewards.vllm_classifier import VllmClassifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_model(tmp_path_factory.mktemp("model"))


def agent(folder: Path | str, name: str = "ash", options: Mapping | None = None, **sampling: object) -> Agent:
    fields = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40} | sampling
    return Agent(name, str(folder), None, fields, options=options or {})


def engine(*agents: Agent, **settings: object) -> Vllm:
    return Vllm({member.name: member for member in agents}, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtpye": "float32"}, "Did you mean 'dtype'"),
        ({"dtype": "float31"}, "Allowed: auto, bfloat16, float16, float32"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0 must be at least 1"),
        ({"gpu_memory_utilization": 1.5}, "a fraction above 0, up to 1"),
        ({"gpus": [0], "tensor_parallel_size": 2}, "fewer than tensor_parallel_size=2"),
        ({"arguments": {"model": "another"}}, "use the agent's model"),
        ({"arguments": "--kv-cache-dtype fp8"}, "is no mapping"),
        ({"arguments": {"trust_remote_code": True}}, "never run"),
        ({"arguments": {"data_parallel_size": 2}}, r"runner=ray .*replicas: 2"),
        (
            {"arguments": {"pipeline_parallel_size": "two"}},
            "pipeline_parallel_size=two; give the number of GPUs",
        ),
        ({"arguments": {"pipeline_parallel_size": 0}}, "an integer, 1 or more"),
        ({"arguments": {"distributed_executor_backend": "ray"}}, "leave it out, .* with runner=ray"),
        ({"gpus": "all"}, r"gpus='all'; give the indices of its GPUs, as \[0, 1\]"),
        ({"max_model_len": "long"}, "expected int or null"),
    ],
)
def test_options_that_cannot_be_are_told_at_once(folder, options, message):
    with pytest.raises(BadInput, match=message) as error:
        engine(agent(folder, options=options))
    assert "ash" in str(error.value)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1.0}, "temperature is at least 0"),
        ({"extra_body": {"top_q": 3}}, "Did you mean 'top_p|Allowed: .*top_k"),
        ({"extra_body": {"top_k": "many"}}, "is no number"),
        ({"extra_body": ["top_k"]}, "is no mapping"),
    ],
)
def test_sampling_that_cannot_be_is_told_at_once(folder, sampling, message):
    with pytest.raises(BadInput, match=message) as error:
        engine(agent(folder, **sampling))
    assert "agent 'ash'" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": "all"}, r"engine\.gpus"),
        ({"residents": 0}, r"engine\.residents"),
        ({"sleep_level": 3}, r"engine\.sleep_level"),
        ({"gpu_memory_utilization": 0.0}, r"engine\.gpu_memory_utilization"),
        ({"patience": -5.0}, r"engine\.patience=-5.0: give .*0 or more"),
    ],
)
def test_settings_of_the_engine_are_checked(folder, settings, message):
    with pytest.raises(BadInput, match=message):
        engine(agent(folder), **settings)


def test_models_that_are_none_are_told_at_once(folder):
    with pytest.raises(BadInput, match="no folder"):
        engine(agent(folder / "nothing"))
    with pytest.raises(BadInput, match="engine=simulator"):
        engine(agent("simulated"))


def test_what_decides_no_sample_is_not_in_the_fingerprint(folder):
    plain = agent(folder).fingerprint()
    options = {
        "tensor_parallel_size": 2, "gpu_memory_utilization": 0.3, "gpus": [0, 1], "max_num_seqs": 8,
        "prefix_caching": False, "arguments": {"enforce_eager": True, "load_format": "safetensors"},
    }  # fmt: skip
    assert engine(agent(folder, options=options)).agents["ash"].fingerprint() == plain
    for options in (
        {"dtype": "bfloat16"},
        {"quantization": "fp8"},
        {"max_model_len": 128},
        {"arguments": {"kv_cache_dtype": "fp8"}},
    ):
        own = engine(agent(folder, options=options)).agents["ash"].fingerprint()
        assert own != plain
        shared = engine(agent(folder), **options).agents["ash"].fingerprint()
        assert shared == own


def test_an_agents_options_override_the_engines_and_arguments_add_up():
    shared = {"max_num_seqs": 256, "dtype": "auto", "arguments": {"block_size": 16, "enforce_eager": True}}
    options = {"dtype": "bfloat16", "arguments": {"block_size": 32}}
    made = Settings.of(shared, options, "options", "agent 'a'")
    assert (made.dtype, made.max_num_seqs) == ("bfloat16", 256)
    assert made.arguments == {"block_size": 32, "enforce_eager": True}


def test_agents_of_one_model_share_its_engine(folder, tmp_path):
    other = causal_model(tmp_path, seed=1)
    made = engine(
        agent(folder, "ash"),
        agent(folder, "oak", temperature=0.0),
        agent(other, "elm"),
        agent(folder, "fir", options={"dtype": "bfloat16"}),
    )
    assert [model.name for model in made.models()] == ["ash", "elm", "fir"]


def test_agents_and_reward_are_placed_together(folder, tmp_path):
    reward = Classifier(model=str(classifier_model(tmp_path / "reward")))
    here, there = engine(agent(folder, "ash")), engine(agent(folder, "oak"))
    share_gpus([here, there, reward])
    cards = [Gpu(0, "a GPU", 24 * GIB, 24 * GIB), Gpu(1, "a GPU", 24 * GIB, 24 * GIB)]
    made = here.ground.plan(lambda: cards)
    assert made is not None and set(made.seats) == {"ash", "oak", "reward"}
    assert there.ground is here.ground


ONE, AUTO, PART = {"residents": 1}, {}, {"gpu_memory_utilization": 0.8}


@pytest.mark.parametrize(
    ("oaks", "ashs", "term", "values"),
    [
        ((Vllm, ONE), (Vllm, AUTO), "residents", ("1", "auto")),
        ((Transformers, ONE), (Vllm, AUTO), "residents", ("1", "auto")),
        ((Transformers, ONE), (Vllm, PART), "residents", ("1", "auto")),
        ((Transformers, AUTO), (Vllm, ONE), "residents", ("auto", "1")),
        ((Transformers, ONE), (Transformers, AUTO), "residents", ("1", "auto")),
        ((Vllm, PART), (Vllm, AUTO), "gpu_memory_utilization", ("0.8", "0.9")),
        ((Vllm, {"gpus": [0]}), (Vllm, AUTO), "gpus", ("[0]", "auto")),
    ],
)
def test_engines_that_want_different_things_of_the_gpus_are_named(folder, oaks, ashs, term, values):
    made = [
        kind({name: agent(folder, name)}, **given) for name, (kind, given) in (("oak", oaks), ("ash", ashs))
    ]
    ground = share_gpus(made)
    with pytest.raises(BadInput) as error:
        ground.plan(lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    said = str(error.value)
    assert f"must agree in {term}, which is" in said and f"engines.<name>.{term}=<value>" in said
    for name, (kind, _), value in zip(("oak", "ash"), (oaks, ashs), values, strict=True):
        assert f"{value} for engine={kind.__name__.lower()} (agents {name})" in said


def test_where_there_are_no_gpus_nobody_has_to_agree_on_them(folder):
    made = [Transformers({"oak": agent(folder, "oak")}, **ONE), engine(agent(folder, "ash"), **PART)]
    assert share_gpus(made).plan(lambda: []) is None


def test_what_one_engine_alone_has_a_setting_for_holds_for_all(folder):
    theirs, ours = Transformers({"oak": agent(folder, "oak")}, **ONE), engine(agent(folder), **ONE, **PART)
    ground = share_gpus([theirs, ours])
    made = ground.plan(lambda: [Gpu(index, "a GPU", 24 * GIB, 24 * GIB) for index in (0, 1)])
    assert ground is theirs.ground and max(seat.share for seat in made.seats.values()) <= 0.8


KINDS = ["classifier.Classifier", "vllm_classifier.VllmClassifier"]


@pytest.mark.parametrize("kinds", [*itertools.combinations_with_replacement(KINDS, 2)])
@pytest.mark.parametrize("beside", [[], ["ash"]])
def test_the_members_of_a_reward_are_placed_together_with_or_without_an_engine_that_plans(
    folder, tmp_path, kinds, beside
):
    model = str(classifier_model(tmp_path))
    members = {
        name: {"_target_": f"toa_exp.rewards.{kind}", "model": model}
        for name, kind in zip("xy", kinds, strict=True)
    }
    reward = Ensemble(members=members, task=None)
    engines = [engine(agent(folder, name)) for name in beside] or [Replay({})]
    ground = share_gpus([*engines, reward])
    cards = [Gpu(index, "a GPU", 24 * GIB, 24 * GIB) for index in range(2 + len(beside))]
    made = ground.plan(lambda: cards)
    assert set(made.seats) == {*beside, "reward.members.x", "reward.members.y"}
    assert len({seat.gpus for seat in made.seats.values()}) == len(cards)  # a GPU each
    for name, member in reward.members.items():
        assert getattr(member, "ground", None) is ground or member._ground is ground
        assert member._seat == f"reward.members.{name}"


def test_a_reward_alone_has_all_gpus(tmp_path):
    reward = Classifier(model=str(classifier_model(tmp_path)))
    assert share_gpus([Replay({}), reward]) is None


@pytest.mark.parametrize("settings", [{}, {"gpus": [1]}, {"gpu_memory_utilization": 0.5}])
def test_models_of_transformers_are_placed_on_the_terms_of_vllm(folder, settings):
    theirs, ours = Transformers({"oak": agent(folder, "oak")}), engine(agent(folder, "ash"), **settings)
    ground = share_gpus([theirs, ours])
    assert theirs.ground is ours.ground is ground
    made = ground.plan(lambda: [Gpu(index, "a GPU", 24 * GIB, 24 * GIB) for index in (0, 1)])
    assert set(made.seats) == {"ash", "oak"} and not made.stages
    assert {seat.gpus for seat in made.seats.values()} <= {(index,) for index in settings.get("gpus", (0, 1))}


def test_a_reward_on_a_named_device_is_not_placed(tmp_path):
    reward = Classifier(model=str(classifier_model(tmp_path)), device="cpu")
    ground = Ground()
    reward.join(ground)
    made = ground.plan(lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    assert made is not None and not made.seats


def test_the_reward_of_vllm_is_that_of_the_classifier(tmp_path):
    model = str(classifier_model(tmp_path))
    usual, ours = Classifier(model=model), VllmClassifier(model=model, max_length=128)
    assert ours.fingerprint() == usual.fingerprint() and ours.shape == usual.shape
    coarse = VllmClassifier(model=model, dtype="bfloat16").fingerprint()
    assert coarse == Classifier(model=model, dtype="bfloat16").fingerprint() != usual.fingerprint()
    assert VllmClassifier(model=model, quantization="fp8").fingerprint() != usual.fingerprint()
    [wanted] = ours.models()
    assert not wanted.sleeps
    with pytest.raises(BadInput, match="no folder"):
        VllmClassifier(model=str(tmp_path / "nothing"))


def test_a_language_model_is_no_reward_and_what_runs_it_is_told(folder):
    made = VllmClassifier(model=str(folder))
    with pytest.raises(BadInput, match=r"is a LlamaForCausalLM.*reward=likelihood.*reward=llm_judge"):
        asyncio.run(made.score(Problem("p", "Hello"), "a text"))


def test_a_reward_that_found_no_gpus_looks_again(tmp_path, monkeypatch):
    made = VllmClassifier(model=str(classifier_model(tmp_path)))
    asked = []

    def unanswered() -> list[Gpu]:
        asked.append(None)
        raise Unavailable(f"the GPUs cannot be asked, time {len(asked)}")

    monkeypatch.setattr(gpus, "visible_gpus", unanswered)

    async def ask() -> None:
        try:
            for time in (1, 2):
                with pytest.raises(Unavailable, match=f"time {time}"):
                    await made.score(Problem("p", "Hello"), "a text")
        finally:
            await made.close()

    asyncio.run(ask())
    assert len(asked) == 2


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_first_draw_says_how_to_install_it(folder):
    messages = [{"role": "user", "content": "Hello"}]
    one = Draw(bytes(16), Problem("p", "Hello"), Request("ash"), messages, b"a", b"p", 0, 0)

    async def ask() -> None:
        made = engine(agent(folder))
        try:
            await made.sample(one)
        finally:
            await made.close()

    with pytest.raises(BadInput, match=r"pip install -e '\.\[vllm\]'"):
        asyncio.run(ask())


def test_constructing_the_engine_loads_neither_torch_nor_vllm():
    code = (
        "import sys; from toa_exp.engines.vllm import Vllm; Vllm({}); "
        "import toa_exp.rewards.vllm_classifier; sys.exit(bool({'torch', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_decides_is_known_wherever_the_engine_is(folder):
    node = {"_target_": "toa_exp.engines.vllm.Vllm", "quantization": "fp8", "gpus": "auto", "residents": 1}
    config = OmegaConf.create(
        {"engine": node, "engines": {"usual": {"_target_": "toa_exp.engines.vllm.Vllm"}}}
    )
    assert _decided(agent(folder), config).deciding == {"quantization": "fp8"}
    assert _decided(replace(agent(folder), engine="usual"), config).deciding == {}


def test_what_a_server_makes_of_a_model_is_said_by_its_agent(folder):
    fields = {"model": str(folder), "sampling": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40}}
    [plain] = agents_of({"agents": {"ash": fields}}).values()
    [made] = agents_of({"agents": {"ash": {**fields, "made": {"quantization": "fp8"}}}}).values()
    config = OmegaConf.create({"engine": {"_target_": "toa_exp.engines.openai.OpenAI"}, "engines": {}})
    here = engine(agent(folder, options={"quantization": "fp8"})).agents["ash"]
    assert _decided(made, config).fingerprint() == here.fingerprint() != _decided(plain, config).fingerprint()
    with pytest.raises(BadInput, match=r"agent 'ash' has made='fp8'.*ensemble\.agents\.ash\.made="):
        agents_of({"agents": {"ash": {**fields, "made": "fp8"}}})
