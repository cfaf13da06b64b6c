"""toa-exp doctor: one line each, and the mend."""

import json
from pathlib import Path

import pytest
from doctor_lines import LOCAL, agents, only
from fake_endpoint import Answer, Asked, completion, refusal, serving
from helpers import cli
from remote import KEY, SHAPE
from tiny_models import causal_model, classifier_model

REMOTE = ["task=jsonl", "engine=openai", "reward=verifier", "ensemble=simulated"]


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
    assert "toa-exp serve" not in failures  # it is there
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
    for wrong in ("method=tao", "ensemble.agents={a:{modle:x}}", "budget.unit=hours", "store.path=null"):
        status, lines, errors = doctor(wrong)
        assert status == 2 and errors and not lines
    status, lines, errors = doctor("+engines.here=transformers", "+ensemble.agents.cedar.engine=here")
    assert status == 2 and "+engine@engines.here=transformers" in errors and not lines


def test_a_sweep_is_looked_at_once(doctor, tmp_path):
    status, lines, errors = doctor("-m", "method=toa,parallel", "seed=0,1")
    assert status == 0, errors
    assert len(lines) == len(set(lines)) and sum("versions" in line for line in lines) == 1
