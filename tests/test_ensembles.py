"""The paper's ensembles: they compose, and their FLOPs are known without the hub."""

import math

import hydra
import pytest
from omegaconf import OmegaConf

from toa_exp import ensemble, labels
from toa_exp.app import CONF
from toa_exp.cli import group_choices
from toa_exp.ensemble import agents_of
from toa_exp.errors import BadInput
from toa_exp.rewards.model import Source

PAPER = [name for name in group_choices()["ensemble"] if name not in ("simulated", "lab")]
# Parameters in billions as the models' authors state them; of a mixture of experts the active ones.
BILLIONS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8.03,
    "mistralai/Mistral-7B-Instruct-v0.2": 7.24,
    "01-ai/Yi-1.5-9B-Chat-16K": 8.83,
    "Qwen/Qwen2-7B-Instruct": 7.62,
    "meta-llama/Llama-3.1-70B-Instruct": 70.6,
    "mistralai/Mistral-Large-Instruct-2407": 123.0,
    "Qwen/Qwen2-72B-Instruct": 72.7,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 39.0,
    "alpindale/WizardLM-2-8x22B": 39.0,
    "google/gemma-2-9b-it": 9.24,
    "deepseek-ai/deepseek-math-7b-rl": 6.91,
}


def composed(name: str) -> dict:
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [f"ensemble={name}"])
    assert not config.engine._target_.endswith("Simulator")
    found = OmegaConf.to_container(config.ensemble, resolve=True)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", PAPER)
def test_the_flops_of_the_papers_models_are_known_without_the_hub(name, monkeypatch):
    monkeypatch.setattr(ensemble, "model_config", lambda *_: pytest.fail("the hub was asked"))
    agents = agents_of(composed(name))
    for agent in agents.values():
        shape = agent.shape()
        billions = BILLIONS[agent.model]
        assert shape.active / 1e9 == pytest.approx(billions, rel=0.01)
        # Of one token; the input embeddings are looked up, which costs nothing.
        assert shape.flops(1, 0) == pytest.approx(2 * (shape.active - shape.embedding), rel=0.001)
        assert shape.flops(1, 0) == pytest.approx(2e9 * billions, rel=0.08)
        assert agent.revision is None or len(agent.revision) == 40


def test_they_are_those_of_the_paper():
    sizes = {"small4": 4, "large5": 5, "large4": 4, "math2": 2, "math4": 4}
    for name, size in sizes.items():
        agents = agents_of(composed(name))
        assert len(agents) == size
        sampling = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
        assert all(agent.sampling == sampling for agent in agents.values())
    assert set(agents_of(composed("math2"))) < set(agents_of(composed("small4")))


def test_a_revision_of_digits_alone_has_to_be_text():
    sampling = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 10}
    with pytest.raises(BadInput, match="agent 'ash' has revision=1234567, a number; put it in quotes"):
        agents_of({"sampling": sampling, "agents": {"ash": {"model": "org/m", "revision": 1234567}}})
    with pytest.raises(BadInput, match="reward has revision=1234567"):
        Source("org/m", revision=1234567).check()


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ({"prompt": 1.0}, "price.completion has no value; give ensemble.agents.ash.price.completion="),
        ({"prompt": -1.0, "completion": 2.0}, r"price.prompt=-1.0: give US dollars"),
        ({"prompt": 1.0, "completion": math.nan}, "price.completion=nan: give US dollars"),
        ({"prompt": math.inf, "completion": 1.0}, "price.prompt=inf: give US dollars"),
        (3.0, r"ensemble.agents.ash.price=3.0: give \{prompt: ..., completion: ...\}"),
    ],
)
def test_what_is_no_price_is_told_before_anything_is_paid(price, message):
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
    with pytest.raises(BadInput, match=message):
        agents_of({"agents": {"ash": {"model": "m", "sampling": sampling, "price": price}}})


@pytest.mark.parametrize("key", ["sampling", "options"])
def test_what_is_no_mapping_is_told(key):
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
    with pytest.raises(BadInput, match=rf"ensemble\.agents\.ash\.{key}=5 is no mapping"):
        agents_of({"agents": {"ash": {"model": "m", key: 5}}, "sampling": sampling})


@pytest.mark.parametrize(
    "shape",
    [{"hidden_size": 64}, {"model_type": "llama", "hidden_size": 64}, {"model_type": "gpt2", "n_embd": "x"}],
)
def test_flops_that_are_not_known_are_told_with_the_agents_name(shape):
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
    one = agents_of({"agents": {"ash": {"model": "m", "sampling": sampling, "architecture": shape}}})["ash"]
    with pytest.raises(BadInput, match=r"^agent 'ash': .*`?architecture") as raised:
        one.shape()
    assert len(str(raised.value)) < 500
