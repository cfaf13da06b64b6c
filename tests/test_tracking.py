"""Weights & Biases, read back from the offline run's own file; no network is used."""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from toa_exp.curves import Row, write_curve
from toa_exp.errors import BadInput
from toa_exp.redact import without_secrets
from toa_exp.tracking import Tracker

SECRET = "planted-4f7c0d2e9b61-secret"
SETTINGS = {"mode": "auto", "project": "toa-exp", "entity": None}
CONFIG = {
    "run": {
        "experiment": "first",
        "task": "gsm8k",
        "ensemble": "simulated",
        "method": "toa",
        "configuration": "0a1b",
    },
    "seed": 0,
    "budget": {"samples": [4, 8]},
    "engine": {"max_tokens": 512, "api_key": SECRET, "headers": {"Authorization": f"Bearer {SECRET}"}},
    "store": {"url": f"postgresql://me:{SECRET}@host/draws"},
    "task": {"note": f"holds the value of a variable: {SECRET}"},
}


def row(budget: int) -> Row:
    """A row as `Curve.rows` makes it."""
    costs = {"samples": budget, "prompt_tokens": 100 * budget, "completion_tokens": 10 * budget}
    costs |= {"flops": 1e12 * budget, "reward_flops": 1e10 * budget, "seconds": budget / 2}
    bounds = {"best_reward": 1.5, "best_reward_lo": 1.0, "best_reward_hi": 2.0}
    bounds |= {"accuracy": budget / 10, "accuracy_lo": 0.1, "accuracy_hi": 0.9}
    return {"method": "toa", "budget": budget, "failed": 0, "problems": 3, **costs, "usd": None, **bounds}


ROWS = [row(4), row(8)]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no wandb session of the user's; a secret wherever one may lie."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("PLANTED_TOKEN", SECRET)
    monkeypatch.setattr(sys, "argv", ["toa-exp", f"engine.api_key={SECRET}"])
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run folder, with a figure."""
    folder = tmp_path / "results/first/gsm8k/simulated/toa/seed=0"
    (folder / "figures").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(CONFIG), folder / "config.yaml")
    (folder / "trajectories.jsonl").write_text('{"problem": "p0"}\n')
    write_curve(folder / "curve.csv", ROWS)
    from PIL import Image

    Image.new("RGB", (8, 8), "white").save(folder / "figures/gsm8k-accuracy-vs-flops.png")
    (folder / "figures/gsm8k-accuracy-vs-flops.svg").write_text("<svg/>")
    return folder


def track(folder: Path, settings: dict[str, Any] = SETTINGS) -> Path:
    """Track the run as a job does; returns the W&B run's folder."""
    with Tracker(settings, folder, CONFIG) as tracker:
        tracker.curve(ROWS)
        tracker.figures(lambda: sorted((folder / "figures").iterdir()))
        tracker.outputs()
    sys.modules["wandb"].teardown()  # as at the end of a process: the file is complete only then
    *_, made = sorted((folder.parents[3] / "wandb").glob("offline-run-*"))
    return made


def records(made: Path) -> list[Any]:
    """The records of an offline run: a log of LevelDB's format, with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = made.glob("*.wandb")
    data = path.read_bytes()
    assert struct.unpack("<4sH", data[:6]) == (b":W&B", 0xBEE1)
    found, pending, place = [], b"", 7
    while place + 7 <= len(data):
        rest = 32768 - place % 32768
        if rest < 7:
            place += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        pending += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(pending))
            pending = b""
    return found


def of_kind(made: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(made) if record.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_an_offline_run_says_what_the_job_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = track(folder)
    run = of_kind(made, "run")[0]
    assert (run.project, run.run_group, run.job_type) == ("toa-exp", "first", "toa")
    assert run.display_name == "gsm8k/simulated/toa/seed=0"
    assert list(run.tags) == ["gsm8k", "simulated", "toa"]
    config = values(run.config.update)
    assert config["run"] == CONFIG["run"]
    assert config["seed"] == 0
    assert config["engine"] == {"max_tokens": 512, "headers": {}}
    assert config["store"] == {"url": "postgresql://[removed]@host/draws"}
    assert not run.HasField("git") and not run.host
    assert of_kind(made, "exit")[0].exit_code == 0
    assert capsys.readouterr().out == ""


def test_the_curve_is_history_over_compute(folder: Path) -> None:
    made = track(folder)
    metrics = {metric.name or metric.glob_name: metric.step_metric for metric in of_kind(made, "metric")}
    assert metrics == {"curve/flops": "", "curve/*": "curve/flops"}
    history = [values(record.item) for record in of_kind(made, "history")]
    curve = [row for row in history if "curve/flops" in row]
    names = {f"curve/{name}" for name, value in ROWS[0].items() if value is not None and name != "method"}
    for made_row, logged in zip(ROWS, curve, strict=True):
        assert {name for name in logged if not name.startswith("_")} == names | {"curve/tokens"}
        assert logged["curve/accuracy"] == made_row["accuracy"]
        assert logged["curve/tokens"] == 110 * made_row["budget"]
    summary: dict[str, Any] = {}
    for record in of_kind(made, "summary"):
        summary |= values(record.update)
    assert {name: summary[name] for name in names} == {name: curve[-1][name] for name in names}


def test_figures_and_trajectories_are_artifacts(folder: Path) -> None:
    made = track(folder)
    artifacts = {artifact.type: artifact for artifact in of_kind(made, "artifact")}
    files = {kind: artifact.manifest.contents for kind, artifact in artifacts.items()}
    assert {kind: {entry.path for entry in entries} for kind, entries in files.items()} == {
        "figure": {"gsm8k-accuracy-vs-flops.png", "gsm8k-accuracy-vs-flops.svg"},
        "trajectories": {"config.yaml", "curve.csv", "trajectories.jsonl"},
    }
    for entry in [*files["figure"], *files["trajectories"]]:  # `wandb sync` finds them below results
        assert Path(entry.local_path).is_relative_to(made)
    assert OmegaConf.load(made / "artifacts/config.yaml").engine == {"max_tokens": 512, "headers": {}}
    assert (made / "artifacts/trajectories.jsonl").read_text() == '{"problem": "p0"}\n'
    image = values(of_kind(made, "history")[-1].item)
    assert image["figures/gsm8k-accuracy-vs-flops/_type"] == "image-file"


def test_nothing_secret_is_logged(folder: Path, tmp_path: Path) -> None:
    made = track(folder)
    assert SECRET in (folder / "config.yaml").read_text()
    written = [path for top in (made, tmp_path / "home") for path in top.rglob("*") if path.is_file()]
    assert {"debug.log", f"run-{made.name.rsplit('-')[-1]}.wandb"} <= {path.name for path in written}
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def test_a_rerun_continues_the_same_run(folder: Path) -> None:
    first, again = (of_kind(track(folder), "run")[0] for _ in range(2))
    assert first.run_id == again.run_id
    assert again.resume
    other = Tracker(SETTINGS, folder, CONFIG | {"seed": 1})
    assert other.identity != first.run_id


def test_a_failed_job_is_a_failed_run(folder: Path) -> None:
    with pytest.raises(RuntimeError), Tracker(SETTINGS, folder, CONFIG):
        raise RuntimeError
    sys.modules["wandb"].teardown()
    (made,) = (folder.parents[3] / "wandb").glob("offline-run-*")
    assert of_kind(made, "exit")[0].exit_code == 1


@pytest.mark.parametrize("mode", ["config", "environment"])
def test_disabled_does_not_import_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it now raises ImportError
    if mode == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker(SETTINGS | ({"mode": "disabled"} if mode == "config" else {}), folder, CONFIG) as tracker:
        tracker.curve(ROWS)
        tracker.outputs()
    assert not (folder.parents[3] / "wandb").exists()
    monkeypatch.delitem(sys.modules, "wandb")


def test_modes_are_among_those_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"tracking.mode 'of'.* Allowed: auto, disabled, offline, online"):
        Tracker(SETTINGS | {"mode": "of"}, folder, CONFIG).start()
    with pytest.raises(BadInput, match=r"needs a W&B API key.*wandb login"):
        Tracker(SETTINGS | {"mode": "online"}, folder, CONFIG).start()
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(BadInput, match=r"WANDB_MODE 'shared'.* disabled, dryrun, offline, online, run"):
        Tracker(SETTINGS, folder, CONFIG).start()


@pytest.mark.parametrize("key", ["environment", "netrc"])
def test_without_a_server_the_run_is_kept_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    monkeypatch.setattr("toa_exp.tracking._INIT_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if key == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        (tmp_path / "home/netrc").write_text(f"machine 127.0.0.1:9\n  login user\n  password {'k' * 40}\n")
    with caplog.at_level(logging.WARNING, "toa_exp"):
        made = track(folder)
    assert "W&B could not start online: CommError" in caplog.text
    assert f"upload it later with: wandb sync {made}" in caplog.text
    assert len(of_kind(made, "history")) == 3
    assert b"k" * 40 not in b"".join(path.read_bytes() for path in made.rglob("*") if path.is_file())


def test_a_failure_of_wandb_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "trajectories.jsonl").unlink()
    track(folder)
    assert "W&B could not take the trajectories: FileNotFoundError" in caplog.text
    assert "mend it with: wandb sync" in caplog.text


def test_what_is_secret_and_what_is_not() -> None:
    kept: dict[str, Any] = {
        "max_tokens": 512,
        "prompt_tokens": [1, 2],
        "eos_token": "</s>",
        "tokenizer": "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "api_key_env": "OPENAI_API_KEY",
        "author": "me",
        "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
        "prompt": "Solve the task-by-task list 12345678901234567890 with basic arithmetic.",
        "url": "https://host:8000/v1",
        "nothing": None,
    }
    assert without_secrets(kept) == kept
    dropped = ["api_key", "apiKey", "X-Api-Key", "hf_token", "token", "client_secret", "PGPASSWORD"]
    assert without_secrets(dict.fromkeys([*dropped, "Authorization"], "x")) == {}
    assert without_secrets({"password": 12345678, "a": [{"secret": "x", "b": 1}]}) == {"a": [{"b": 1}]}
    texts = {
        "sk-proj-not-a-real-key-0123456789": "[removed]",
        "use hf_NotARealTokenNotARealToken0": "use [removed]",
        "Bearer not-a-real-token-0123": "[removed]",
        "https://me:pw@host/x?api_key=123&n=1": "https://[removed]@host/x?[removed]&n=1",
    }
    assert {text: without_secrets(text) for text in texts} == texts
