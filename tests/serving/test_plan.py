"""Which servers a configuration needs."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.build import build
from toa_exp.commands.serve import _is_replaced
from toa_exp.engines import gpus as placing
from toa_exp.engines.seats import GIB, Gpu
from toa_exp.engines.vllm import Vllm
from toa_exp.ensemble import agents_of
from toa_exp.errors import BadInput
from toa_exp.job import _decided
from toa_exp.labels import LAB_WEIGHTS
from toa_exp.serving import plan as planning
from toa_exp.serving.plan import Place, Plan, plan
from toa_exp.serving.processes import Server
from toa_exp.serving.served import served_ensemble, served_reward

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


def gpus(*sizes: int) -> Callable[[], list[Gpu]]:
    """GPUs of so many GiB, with none in use."""
    return lambda: [Gpu(index, "a GPU", size * GIB, size * GIB) for index, size in enumerate(sizes)]


def folder(path: Path, weights: float) -> Path:
    """A model of so many GiB, as far as a plan reads it: 1/8 MiB a token in the KV cache, 8192 tokens."""
    path.mkdir()
    config = {
        "model_type": "llama", "dtype": "bfloat16", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": int(weights * GIB)}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def given(server: Server) -> dict[str, str]:
    """The options of a server's command."""
    return dict(pairwise(server.command[3:]))


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
    monkeypatch.setattr(placing, "visible_gpus", gpus(24, 24))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-6")
    first, second = folder(tmp_path / "first", 4), folder(tmp_path / "second", 4)
    agents = (
        f"ensemble.agents={{ash:{{model:{first},revision:abc,options:{{dtype:float16,max_model_len:512,gpus:[0,1],"
        f"tensor_parallel_size:2,arguments:{{enforce_eager:true,chat_template:my.jinja,"
        f"cudagraph_capture_sizes:[1,2]}}}}}},elm:{{model:{second}}},"
        f"oak:{{model:{second},sampling:{{temperature:0.1}}}}}}"
    )
    result = made(tmp_path, "~ensemble.agents", f"+{agents}", "server=vllm", "reward=verifier")
    ash, elm = result.servers
    assert result.agents["elm"] == result.agents["oak"] != result.agents["ash"]
    assert ash.environment == {"CUDA_VISIBLE_DEVICES": "4,GPU-6"} and ash.gpus == (0, 1)
    assert elm.environment["CUDA_VISIBLE_DEVICES"] in ("4", "GPU-6") and len(elm.gpus) == 1
    command, options = ash.command, given(ash)
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert options["--model"] == options["--served-model-name"] == str(first)
    assert options["--revision"] == "abc" and options["--max-num-seqs"] == "256"
    assert options["--max-model-len"] == "512" and options["--tensor-parallel-size"] == "2"
    assert options["--generation-config"] == "vllm" and options["--chat-template"] == "my.jinja"
    at = command.index("--cudagraph-capture-sizes")
    assert command[at + 1 : at + 3] == ["1", "2"]
    assert "--enforce-eager" in command and "--no-trust-remote-code" in command
    assert result.agents["ash"].endswith(f":{options['--port']}/v1") and result.reward is None


def test_an_engine_without_fields_is_served_as_a_run_has_it(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(placing, "visible_gpus", gpus(24))
    (tmp_path / "derived_vllm.py").write_text(
        "from toa_exp.engines.vllm import Vllm\n\nclass Mine(Vllm):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for number, target in enumerate(("toa_exp.engines.vllm.Vllm", "derived_vllm.Mine")):
        agents = f"{{ash:{{model:{folder(tmp_path / f'model{number}', 4)}}}}}"
        wanted = ["~ensemble.agents", f"+ensemble.agents={agents}", "reward=verifier", "~engine"]
        result = made(tmp_path / f"served{number}", *wanted, f"+engine={{_target_:{target}}}")
        (server,) = result.servers
        assert float(given(server)["--gpu-memory-utilization"]) == pytest.approx(0.9, abs=0.01)
        assert server.name.startswith("vllm server")


def test_the_gpus_are_shared_out_as_by_the_engine_of_a_run(tmp_path, vllm, monkeypatch, capsys):
    monkeypatch.setattr(placing, "visible_gpus", gpus(24, 80))
    models = {name: folder(tmp_path / name, size) for name, size in {"ash": 30, "elm": 6, "oak": 4}.items()}
    agents = ",".join(f"{name}:{{model:{path}}}" for name, path in models.items())
    wanted = ["~ensemble.agents", f"+ensemble.agents={{{agents}}}", "engine=vllm", "engine.max_num_seqs=64"]
    wanted += ["engine.gpu_memory_utilization=0.8"]
    result = made(tmp_path / "served", *wanted, "reward=verifier")
    agents = agents_of(hydra.utils.instantiate(compose(*wanted).ensemble, _convert_="all"))
    engine = Vllm(agents, gpu_memory_utilization=0.8)
    seats = engine.ground.plan(gpus(24, 80)).seats
    for name, server in zip(models, result.servers, strict=True):
        assert server.gpus == seats[name].gpus
        assert float(given(server)["--gpu-memory-utilization"]) == seats[name].share
        assert given(server)["--max-num-seqs"] == "64"
    assert "plan for 2 GPUs" in capsys.readouterr().err


def test_servers_take_no_turns_so_what_does_not_fit_is_told_with_what_would(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(placing, "visible_gpus", gpus(24))
    models = ",".join(f"{name}:{{model:{folder(tmp_path / name, 12)}}}" for name in ("ash", "elm"))
    wanted = ["~ensemble.agents", f"+ensemble.agents={{{models}}}", "reward=verifier", "engine=vllm"]
    with pytest.raises(BadInput, match=r"(ash|elm) does not fit: weights 12\.0 GiB") as error:
        made(tmp_path / "served", *wanted, "engine.residents=1")
    assert "agents that take turns, toa-exp run with engine=vllm engine.residents=auto" in str(error.value)
    assert "1 more GPU of 24 GiB" not in str(error.value) and not (tmp_path / "served").exists()
    with pytest.raises(BadInput, match=r"engine\.gpus=\[1\]"):
        made(tmp_path / "served", *wanted, "engine.gpus=[1]")


def test_members_of_a_reward_have_places_of_their_own(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(placing, "visible_gpus", gpus(24, 24, 24))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    model, score = folder(tmp_path / "ash", 12), folder(tmp_path / "score", 12)
    members = [f"+reward@reward.members.{name}=classifier" for name in "ab"]
    members += [f"reward.members.{name}.model={score}" for name in "ab"]
    wanted = [
        "~ensemble.agents",
        f"+ensemble.agents={{ash:{{model:{model}}}}}",
        "engine=vllm",
        "reward=ensemble",
    ]
    ash, scorer = made(tmp_path / "served", *wanted, *members).servers
    assert len(scorer.gpus) == 2 and {*ash.gpus, *scorer.gpus} == {0, 1, 2}
    assert scorer.environment == {"CUDA_VISIBLE_DEVICES": ",".join(map(str, scorer.gpus))}
    spec = json.loads(Path(scorer.command[-1]).read_text())["reward"]["members"]
    assert {spec[name]["device"] for name in "ab"} == {"cuda:0", "cuda:1"}


def test_the_reward_has_its_place_beside_vllms_servers(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(placing, "visible_gpus", gpus(24, 24))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    model, score = folder(tmp_path / "ash", 12), folder(tmp_path / "score", 12)
    wanted = ["~ensemble.agents", f"+ensemble.agents={{ash:{{model:{model}}}}}", "engine=vllm"]
    for reward in ("classifier", "vllm_classifier"):
        ash, scorer = made(tmp_path / reward, *wanted, f"reward={reward}", f"reward.model={score}").servers
        assert {ash.gpus, scorer.gpus} == {(0,), (1,)}
        assert scorer.environment == {"CUDA_VISIBLE_DEVICES": str(scorer.gpus[0])}
    spec = json.loads(Path(scorer.command[-1]).read_text())["reward"]
    assert 12 / 24 < spec["gpu_memory_utilization"] <= 0.9 and spec["gpus"] is None


def test_a_judge_stays_in_the_run(tmp_path):
    judge = ["reward=llm_judge", "reward.model=critic", "reward.engine.base_url=http://localhost:9/v1"]
    result = made(tmp_path, *LAB, *judge)
    assert len(result.servers) == 1 and result.reward is None
    members = ["reward=ensemble", "+reward@reward.members.one=llm_judge", "reward.members.one.model=critic"]
    with pytest.raises(BadInput, match=r"reward\.members\.one is a judge, which reads more"):
        made(tmp_path, *LAB, *members)


def test_auto_takes_the_engines_server_and_else_vllm_where_there_is_one(tmp_path, vllm):
    assert "worker" in made(tmp_path, *LAB, "reward=verifier").servers[0].command[2]
    other = made(tmp_path, *LAB, "engine=openai", "reward=verifier").servers
    assert len(other) == 4 and all("vllm" in server.command[2] for server in other)


def test_without_vllm_the_built_in_server_stands_in_unless_vllm_is_asked_for(tmp_path, no_vllm):
    assert len(made(tmp_path, *LAB, "engine=openai", "reward=verifier").servers) == 1
    with pytest.raises(BadInput, match=r"agent 'ada': vllm is not installed.*\.\[vllm\].*server=transf"):
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
    text = served_ensemble(config, agents, dict.fromkeys(agents, "http://127.0.0.1:1/v1"), {})
    again = agents_of({"agents": yaml.safe_load(text)["agents"]})
    assert {n: a.fingerprint() for n, a in again.items()} == {n: a.fingerprint() for n, a in agents.items()}
    assert {n: a.shape() for n, a in again.items()} == {n: a.shape() for n, a in agents.items()}
    assert again["ada"].price == agents["ada"].price
    rewards = [
        served_reward(compose(*LAB, *more).reward, "r", "http://x") for more in ([], ["reward.slope=2.0"])
    ]
    models = [yaml.safe_load(text)["model"] for text in rewards]
    assert models[0] != models[1] and models[0].startswith("r-")
    served = yaml.safe_load(rewards[0])
    assert served["output_head"] is True and served["range"][0] < served["range"][1]
    local = build(compose(*LAB).reward, "reward", task=None).range
    assert build(OmegaConf.create(served), "reward", task=None).range == local


def test_an_agent_that_an_endpoint_has_keeps_the_way_there(tmp_path, no_vllm):
    config = compose(
        *LAB,
        "reward=verifier",
        "+engine@engines.there=openai",
        "engines.there.base_url=http://there/v1",
        "engines.there.key_env=THERE_KEY",
        "+ensemble.agents.far={model:good,engine:there,options:{timeout:7.0}}",
    )
    agents = agents_of(hydra.utils.instantiate(config.ensemble, _convert_="all"))
    result = plan(config, agents, Place("127.0.0.1", None, tmp_path))
    far = yaml.safe_load(served_ensemble(config, agents, result.agents, result.made))["agents"]["far"]
    assert "engine" not in far and "far" not in result.agents
    given = {name: far["options"][name] for name in ("base_url", "key_env", "timeout")}
    assert given == {"base_url": "http://there/v1", "key_env": "THERE_KEY", "timeout": 7.0}


def test_a_reward_of_several_models_is_served_with_a_word_on_its_flops(caplog):
    member = "+reward@reward.members.one=classifier"
    config = compose(*LAB, "reward=ensemble", member, f"reward.members.one.model={MATH}/judge")
    assert yaml.safe_load(served_reward(config.reward, "ensemble", "http://x"))["architecture"] is None
    assert "reward=ensemble do not count its FLOPs" in caplog.text


def test_what_says_how_the_agents_are_reached_here_is_left_out_of_the_command_of_a_run():
    served = Plan([], {"ash": "http://x/v1"}, {}, None)
    replaced = ["engine=vllm", "engine.dtype=float32", "+engine@engines.here=vllm", "engines.here.dtype=auto",
                "++engines.here.residents=1", "+ensemble.agents.ash.engine=here", "port=1"]  # fmt: skip
    kept = ["task=lab_math", "reward=verifier", "seed=1", "runner=ray"]
    assert [override for override in (*replaced, *kept) if not _is_replaced(override, served)] == kept
    assert not any(_is_replaced(override, replace(served, agents={})) for override in replaced[:-1])


@pytest.mark.parametrize("server", ["auto", "vllm"])
def test_what_a_server_makes_of_a_model_stays_part_of_its_identity(tmp_path, vllm, monkeypatch, server):
    monkeypatch.setattr(placing, "visible_gpus", gpus(80))
    options = "{quantization:fp8,max_model_len:512,max_num_seqs:8,arguments:{kv_cache_dtype:fp8}}"
    model = folder(tmp_path / "ash", 4)
    wanted = [
        "~ensemble.agents",
        f"+ensemble.agents={{ash:{{model:{model},options:{options}}},elm:{{model:{model}}}}}",
    ]
    wanted += ["reward=verifier", "engine=vllm" if server == "auto" else "engine=openai", f"server={server}"]
    config = compose(*wanted)
    agents = agents_of(hydra.utils.instantiate(config.ensemble, _convert_="all"))
    result = plan(config, agents, Place("127.0.0.1", None, tmp_path))
    text = yaml.safe_load(served_ensemble(config, agents, result.agents, result.made))
    served, here = agents_of({"agents": text["agents"]}), Vllm(agents).agents
    assert {n: a.fingerprint() for n, a in served.items()} == {n: a.fingerprint() for n, a in here.items()}
    assert served["ash"].deciding == {"quantization": "fp8", "max_model_len": 512, "kv_cache_dtype": "fp8"}
    assert "made" not in text["agents"]["elm"] and served["ash"].fingerprint() != served["elm"].fingerprint()


def test_the_dtype_of_the_built_in_server_stays_part_of_the_identity(tmp_path, no_vllm):
    config = compose(*LAB, "engine.dtype=bfloat16", "reward=verifier")
    agents = agents_of(hydra.utils.instantiate(config.ensemble, _convert_="all"))
    result = plan(config, agents, Place("127.0.0.1", None, tmp_path))
    text = yaml.safe_load(served_ensemble(config, agents, result.agents, result.made))
    here = {name: _decided(one, config) for name, one in agents.items()}
    served = agents_of({"agents": text["agents"]})
    assert {n: a.fingerprint() for n, a in served.items()} == {n: a.fingerprint() for n, a in here.items()}
    assert served["ada"].deciding == {"dtype": "bfloat16"}


def test_on_a_cpu_nothing_is_read_in_chunks(tmp_path, vllm, monkeypatch):
    monkeypatch.setattr(placing, "visible_gpus", gpus())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (server, *_) = made(tmp_path, *LAB, "server=vllm", "reward=verifier").servers
    options = given(server)
    assert "--no-enable-chunked-prefill" in server.command and options["--dtype"] == "float32"
    assert int(options["--max-num-batched-tokens"]) >= 32768 and "--gpu-memory-utilization" not in options
    assert int(options["--kv-cache-memory-bytes"]) >= GIB and not server.gpus
    assert server.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "OMP_NUM_THREADS" in server.environment
