"""What toa-exp doctor says of memory, of this machine and of GPUs."""

import json
from pathlib import Path

import hydra
import pytest
from doctor_lines import agents

from toa_exp.app import CONF
from toa_exp.doctor import memory
from toa_exp.doctor.findings import Findings
from toa_exp.engines import gpus, sizes
from toa_exp.engines.seats import GIB, Gpu, Plan
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput
from toa_exp.job import assemble

SHAPE_OF_8_KIB = {
    "model_type": "llama", "dtype": "bfloat16", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 1024,
}  # fmt: skip


def weights(folder: Path, size: float, **changes: object) -> str:
    """A model folder that says how many GiB its files have, in bfloat16; 8 KiB a token in the KV cache."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SHAPE_OF_8_KIB, **changes}))
    index = {"metadata": {"total_size": int(size * GIB)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize(("free", "level"), [(100.0, "OK"), (17.0, "WARN"), (15.0, "FAIL")])
def test_models_are_weighed_against_the_memory_that_is_free(free, level, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: ("cuda:0", int(free * GIB)))
    said: list[str] = []
    engine = {"device": "auto", "dtype": "auto"}
    one = Agent("ash", weights(tmp_path / "a", 8), None, {})
    two = Agent("elm", weights(tmp_path / "b", 4), None, {}, options={"dtype": "float32"})
    models = [memory.Load.of_agent(agent, engine) for agent in (one, two)]
    memory.check_memory(Findings(said.append), models)
    (line,) = said
    assert line.startswith(level) and "16.00 GiB of weights (agent 'ash' 8.00, agent 'elm' 8.00)" in line


def test_a_model_whose_size_is_not_known_is_no_small_one(tmp_path):
    (tmp_path / "empty").mkdir()
    said: list[str] = []
    engine = {"device": "cpu", "dtype": "auto"}
    for model in (tmp_path / "empty", weights(tmp_path / "a", 1, dtype="bfloat16")):
        agent = Agent("ash", str(model), None, {}, options={"dtype": "float31"})
        memory.check_memory(Findings(said.append), [memory.Load.of_agent(agent, engine)])
    assert "how much agent 'ash' takes is not known" in said[0] and "config.json" in said[0]
    assert "unknown dtype of agent 'ash': 'float31'" in said[1] and all(s.startswith("WARN") for s in said)


def test_memory_of_the_machine_is_known():
    place, free = sizes.free_memory("cpu")
    assert place == "the CPU" and free > 2**20


def local_vllm(tmp_path: Path, *sizes: float) -> list[str]:
    """An ensemble for engine=vllm of models of so many GiB, and a reward of 3 GiB."""
    names = {f"a{number}": weights(tmp_path / f"a{number}", size) for number, size in enumerate(sizes)}
    members = agents(**{name: f"model:{model}" for name, model in names.items()})
    reward = weights(tmp_path / "reward", 3)
    return ["task=simulated", "engine=vllm", "reward=classifier", f"reward.model={reward}", members]


def plan_of(given: list[str]) -> Plan:
    """That of a run."""
    rewritten = [
        "~ensemble.agents",
        *(f"+{text}" if text.startswith("ensemble.") else text for text in given),
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        job = assemble(hydra.compose("config", rewritten), given)
    plan = job.engine.ground.plan()
    assert plan is not None and job.ground is job.engine.ground
    return plan


def test_models_for_gpus_are_placed_as_a_run_places_them(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    given = local_vllm(tmp_path, 12, 4)
    _, lines, _ = doctor(*given)
    (line,) = [line for line in lines if " memory: " in line]
    plan = plan_of(given)
    assert set(plan.seats) == {"a0", "a1", "reward"}
    assert line == "OK   memory: " + "; ".join(" ".join(row.split()) for row in plan.table().splitlines())


@pytest.mark.parametrize("of_agents", ["vllm", "transformers"])
@pytest.mark.parametrize("of_judge", ["vllm", "transformers"])
def test_a_judge_is_placed_with_the_agents_and_takes_no_turns_with_them(
    of_agents, of_judge, doctor, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    given = [*local_vllm(tmp_path, 9, 8), f"engine={of_agents}", "engine.residents=1", "reward=llm_judge"]
    given.append(f"engine@reward.engine={of_judge}")
    _, lines, _ = doctor(*given)
    (line,) = [line for line in lines if " memory: " in line]
    plan = plan_of(given)
    assert set(plan.seats) == {"a0", "a1", "reward"}
    assert plan.turns("reward") is None and set(plan.turns("a0").names) == {"a0", "a1"}
    assert sum(plan.seats[name].share for name in ("a0", "reward")) <= 0.9 + 1e-6
    assert line == "OK   memory: " + "; ".join(" ".join(row.split()) for row in plan.table().splitlines())


def test_a_judge_has_gpus_of_its_own_and_what_is_left_for_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(n, "a GPU", 24 * GIB, 24 * GIB) for n in (0, 1)])
    given = [*local_vllm(tmp_path, 9, 8), "engine.gpus=[0]", "reward=llm_judge", "engine@reward.engine=vllm"]
    apart = plan_of([*given, "reward.engine.gpus=[1]"]).seats
    assert {name: seat.gpus for name, seat in apart.items()} == {"a0": (0,), "a1": (0,), "reward": (1,)}
    with pytest.raises(BadInput, match=r"reward is to be on GPUs \[7\], and \[7\] are none of the 2 visible"):
        plan_of([*given, "++reward.options.gpus=[7]"])
    by_turns = plan_of([*given, "engine.residents=1"]).seats
    assert by_turns["reward"].cache > GIB and by_turns["a0"].cache > GIB


def test_what_would_make_a_judge_fit_is_said_with_its_own_settings(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    given = [*local_vllm(tmp_path, 12), "reward=llm_judge", "engine@reward.engine=vllm"]
    status, lines, _ = doctor(*given, f"reward.model={weights(tmp_path / 'judge', 14)}")
    (line,) = [line for line in lines if " memory: " in line]
    assert status == 1 and " does not fit: " in line and "++reward.options.quantization=fp8" in line


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_without_gpus_a_judge_is_weighed(engine, doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    monkeypatch.setattr(memory, "free_memory", lambda device: (sizes.CPU, 1000 * GIB))
    given = ["task=simulated", "ensemble=simulated", "reward=llm_judge", f"engine@reward.engine={engine}"]
    _, lines, _ = doctor(*given, f"reward.model={weights(tmp_path / 'judge', 3)}")
    (line,) = [line for line in lines if " memory: " in line]
    assert "6.00 GiB of weights (reward 6.00)" in line
    _, lines, _ = doctor(*given, f"reward.model={tmp_path / 'judge'}", "+reward.options.dtype=bfloat16")
    assert any("3.00 GiB of weights (reward 3.00)" in line for line in lines)


def test_agents_of_one_model_that_is_placed_are_not_weighed_again(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    monkeypatch.setattr(memory, "free_memory", lambda device: ("cuda:0", 24 * GIB))
    model = weights(tmp_path / "a", 14)
    given = ["task=simulated", "engine=vllm", agents(a=f"model:{model}", b=f"model:{model}")]
    _, lines, _ = doctor(*given)
    (line,) = [line for line in lines if " memory: " in line]
    assert line.startswith("OK   memory: ") and " a 0 14.0 " in line


def test_models_that_no_run_could_place_fail(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    status, lines, _ = doctor(*local_vllm(tmp_path, 30))
    (line,) = [line for line in lines if " memory: " in line]
    assert status == 1 and line.startswith("FAIL memory: a0 does not fit: weights 30.0 GiB")


def test_without_gpus_what_vllm_runs_is_weighed(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    monkeypatch.setattr(memory, "free_memory", lambda device: (sizes.CPU, 1000 * GIB))
    _, lines, _ = doctor(*local_vllm(tmp_path, 12))
    (line,) = [line for line in lines if " memory: " in line]
    assert "30.00 GiB of weights (agent 'a0' 24.00, reward 6.00), 1000.0 GiB free on the CPU" in line


@pytest.mark.parametrize("kind", ["classifier", "vllm_classifier"])
def test_without_gpus_every_member_of_a_reward_is_weighed(kind, doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    monkeypatch.setattr(memory, "free_memory", lambda device: (sizes.CPU, 1000 * GIB))
    model = weights(tmp_path / "reward", 3)
    given = [f"+reward@reward.members.{name}={kind}" for name in ("one", "two")]
    given += [f"reward.members.{name}.model={model}" for name in ("one", "two")]
    _, lines, _ = doctor("task=simulated", "ensemble=simulated", "reward=ensemble", *given)
    (line,) = [line for line in lines if " memory: " in line]
    assert "12.00 GiB of weights (reward.members.one 6.00, reward.members.two 6.00)" in line


def test_an_engine_derived_from_one_is_looked_at_as_that_one(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    monkeypatch.setattr(memory, "free_memory", lambda device: (sizes.CPU, 1000 * GIB))
    (tmp_path / "derived.py").write_text(
        "from toa_exp.engines.transformers import Transformers\n\nclass Mine(Transformers):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    member = agents(ash=f"model:{weights(tmp_path / 'a', 3)}")
    _, lines, _ = doctor("task=simulated", "engine._target_=derived.Mine", "engine=transformers", member)
    assert any("6.00 GiB of weights (agent 'ash' 6.00)" in line for line in lines)
    assert any("chat template of agent 'ash'" in line for line in lines)


@pytest.mark.parametrize(
    ("target", "residents", "free", "level", "counted"),
    [
        ("transformers.Transformers", 1, 15.0, "OK", "8.00 GiB of weights"),
        ("transformers.Transformers", "auto", 15.0, "OK", "8.00 GiB of weights"),
        ("transformers.Transformers", "auto", 30.0, "OK", "18.00 GiB of weights"),
        ("transformers.Transformers", "auto", 7.0, "FAIL", "8.00 GiB of weights"),
        ("transformers.Transformers", 3, 15.0, "FAIL", "18.00 GiB of weights"),
        ("vllm.Vllm", 1, 15.0, "OK", "8.00 GiB of weights"),
        ("vllm.Vllm", 2, 15.0, "FAIL", "16.00 GiB of weights"),
        ("vllm.Vllm", "auto", 15.0, "FAIL", "18.00 GiB of weights"),
    ],
)
def test_agents_that_take_turns_count_as_many_as_are_there_at_once(
    target, residents, free, level, counted, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "free_memory", lambda device: ("cuda:0", int(free * GIB)))
    said: list[str] = []
    engine = {"_target_": f"toa_exp.engines.{target}", "residents": residents}
    named = {"ash": 8.0, "elm": 2.0, "oak": 8.0}
    members = [Agent(name, weights(tmp_path / name, size), None, {}) for name, size in named.items()]
    memory.check_memory(Findings(said.append), [memory.Load.of_agent(agent, engine) for agent in members])
    (line,) = said
    assert line.startswith(level) and counted in line
    assert ("engine.residents=1" in line) == (level == "FAIL")
    awake = {8.0: 1, 16.0: 2, 18.0: 3}[float(counted.split()[0])]
    assert (f"; {awake} of 3 agents at a time" in line) == (awake < 3)


def test_models_of_transformers_for_gpus_are_placed_as_a_run_places_them(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    given = local_vllm(tmp_path, 12, 10)
    _, lines, _ = doctor(*(part.replace("engine=vllm", "engine=transformers") for part in given))
    (line,) = [line for line in lines if " memory: " in line]
    assert line.startswith("OK") and line.count("by turns, 1 of 2 awake") == 2 and "reward 0 3.0" in line
