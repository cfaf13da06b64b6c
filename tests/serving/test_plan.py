"""Which servers a configuration needs."""

import json
from itertools import pairwise
from pathlib import Path

import hydra
import pytest
import yaml

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.ensemble import agents_of
from toa_exp.errors import BadInput
from toa_exp.labels import LAB_WEIGHTS
from toa_exp.serving import plan as planning
from toa_exp.serving.plan import Place, Plan, plan, served_ensemble, served_reward
from toa_exp.serving.vllm import Settings, place

MATH = LAB_WEIGHTS / "math"


def compose(*overrides: str):
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("serve", list(overrides))


def made(folder: Path, *overrides: str) -> Plan:
    config = compose(*overrides)
    agents = agents_of(hydra.utils.instantiate(config.ensemble, _convert_="all"))
    return plan(config, agents, Place("127.0.0.1", None, folder))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were installed."""
    monkeypatch.setattr(planning, "find_spec", lambda name: object())


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "find_spec", lambda name: None)


LAB = ["task=lab_math", "ensemble=lab"]


def test_one_built_in_server_has_all_agents_and_another_the_reward(tmp_path):
    result = made(tmp_path, *LAB)
    chat, reward = result.servers
    assert set(result.agents) == {"ada", "ben", "cleo", "dan"} and len(set(result.agents.values())) == 1
    spec = json.loads(Path(chat.command[-1]).read_text())
    assert spec["agents"]["ada"]["model"] == str(MATH / "ada") and "toa_exp.serving.worker" in chat.command
    assert json.loads(Path(reward.command[-1]).read_text())["reward"]["model"] == str(MATH / "teacher")
    assert f"{result.reward}/health" == reward.health
    assert chat.log != reward.log


def test_every_model_has_a_vllm_server_with_the_agents_arguments(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(planning, "visible_gpus", lambda: [0, 1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-6")
    agents = (
        "ensemble.agents={ash:{model:some/model,revision:abc,options:{dtype:float32,max_model_len:512,gpus:[0,1],"
        "tensor_parallel_size:2,arguments:{enforce_eager:true,chat_template:my.jinja}}},elm:{model:other/model},"
        "oak:{model:other/model,sampling:{temperature:0.1}}}"
    )
    result = made(tmp_path, "~ensemble.agents", f"+{agents}", "server=vllm", "reward=verifier")
    ash, elm = result.servers
    assert result.agents["elm"] == result.agents["oak"] != result.agents["ash"]
    assert ash.environment == {"CUDA_VISIBLE_DEVICES": "4,GPU-6"}
    assert elm.environment == {"CUDA_VISIBLE_DEVICES": "4"}
    command = ash.command
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    given = dict(pairwise(command[3:]))
    assert given["--model"] == given["--served-model-name"] == "some/model" and given["--revision"] == "abc"
    assert given["--max-model-len"] == "512" and given["--tensor-parallel-size"] == "2"
    assert given["--generation-config"] == "vllm" and given["--chat-template"] == "my.jinja"
    assert given["--gpu-memory-utilization"] == "0.45"  # half of 0.9: another server is on GPU 0
    assert "--enforce-eager" in command and result.agents["ash"].endswith(f":{given['--port']}/v1")
    assert result.reward is None


def test_auto_takes_the_engines_server_and_else_vllm_where_there_is_one(tmp_path, vllm):
    assert "worker" in made(tmp_path, *LAB, "reward=verifier").servers[0].command[2]
    other = made(tmp_path, *LAB, "engine=openai", "reward=verifier").servers
    assert len(other) == 4 and all("vllm" in server.command[2] for server in other)


def test_without_vllm_the_built_in_server_stands_in_unless_vllm_is_asked_for(tmp_path, no_vllm):
    assert len(made(tmp_path, *LAB, "engine=openai", "reward=verifier").servers) == 1
    with pytest.raises(BadInput, match=r"agent 'ada': vllm is not installed.*toa-exp\[vllm\].*server=transf"):
        made(tmp_path, *LAB, "server=vllm")


def test_what_is_served_already_or_needs_no_server_has_none(tmp_path):
    remote = ["engine=openai", "engine.base_url=http://elsewhere/v1"]
    assert [server.name for server in made(tmp_path, *LAB, *remote).servers] == ["reward server"]
    assert made(tmp_path, "ensemble=simulated", *LAB[:1], "reward=lab_judge").agents == {}
    with pytest.raises(BadInput, match="nothing to serve"):
        made(tmp_path, "ensemble=simulated")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["server=sglang"], "Allowed: auto, transformers, vllm"),
        (["port=70000"], "port 70000"),
        (["reward=classifier", "reward.model=/no/where"], "there is no folder"),
    ],
)
def test_bad_input_is_told_before_anything_starts(tmp_path, overrides, message):
    with pytest.raises(BadInput, match=message):
        config = compose(*LAB, *overrides)
        agents = agents_of(hydra.utils.instantiate(config.ensemble, _convert_="all"))
        plan(config, agents, Place("127.0.0.1", config.port, tmp_path))


def test_options_that_vllms_server_does_not_have_are_named(tmp_path, vllm):
    with pytest.raises(BadInput, match=r"Did you mean 'max_model_len'"):
        made(tmp_path, *LAB, "server=vllm", "+ensemble.agents.ada.options={max_model_length:4}")
    with pytest.raises(BadInput, match=r"give the indices of its GPUs, as \[0, 1\]"):
        made(tmp_path, *LAB, "server=vllm", "+ensemble.agents.ada.options={gpus:[one]}")


def test_agents_and_reward_keep_their_identity_when_they_are_served():
    config = compose(*LAB, "+ensemble.agents.ada.price={prompt:1.0,completion:2.0}")
    agents = agents_of(hydra.utils.instantiate(config.ensemble, _convert_="all"))
    text = served_ensemble(config, agents, dict.fromkeys(agents, "http://127.0.0.1:1/v1"))
    again = agents_of({"agents": yaml.safe_load(text)["agents"]})
    assert {n: a.fingerprint() for n, a in again.items()} == {n: a.fingerprint() for n, a in agents.items()}
    assert {n: a.shape() for n, a in again.items()} == {n: a.shape() for n, a in agents.items()}
    assert again["ada"].price == agents["ada"].price
    rewards = [
        served_reward(compose(*LAB, *more).reward, "r", "http://x") for more in ([], ["reward.slope=2.0"])
    ]
    models = [yaml.safe_load(text)["model"] for text in rewards]
    assert models[0] != models[1] and models[0].startswith("r-")
    assert yaml.safe_load(rewards[0])["output_head"] is True


def test_servers_share_out_the_gpus():
    given = {
        "large": Settings(tensor_parallel_size=2, gpus=[2, 3]),
        "fixed": Settings(gpus=[0], gpu_memory_utilization=0.3),
        "one": Settings(),
        "two": Settings(),
    }
    shares = place(given, [0, 1, 2, 3], 0.8)
    assert {name: (share.gpus, share.utilization) for name, share in shares.items()} == {
        "large": ((2, 3), 0.8),
        "fixed": ((0,), 0.3),
        "one": ((1,), 0.8),
        "two": ((0,), 0.4),
    }
    with pytest.raises(BadInput, match=r"agent 'big': tensor_parallel_size=4"):
        place({"big": Settings(tensor_parallel_size=4)}, [0, 1], 0.9)


def test_on_a_cpu_nothing_is_read_in_chunks(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(planning, "visible_gpus", lambda: [])
    (server, *_) = made(tmp_path, *LAB, "server=vllm", "reward=verifier").servers
    given = dict(pairwise(server.command))
    assert "--no-enable-chunked-prefill" in server.command and given["--dtype"] == "float32"
    assert int(given["--max-num-batched-tokens"]) >= 32768 and "--gpu-memory-utilization" not in given
    assert "VLLM_CPU_KVCACHE_SPACE" in server.environment
