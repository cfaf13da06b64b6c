"""Runs of `toa-exp` on vLLM itself, with the lab's models."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, Asked, completion, serving
from helpers import cli, lines

from toa_exp.labels import LAB_WEIGHTS

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm.engine.arg_utils")
psutil = pytest.importorskip("psutil")

MATH = LAB_WEIGHTS / "math"
RUN = [
    "run", "engine=vllm", "task=lab_math", "ensemble=lab", "~ensemble.agents.cleo", "~ensemble.agents.dan",
    "method=toa", "task.problems=24", "budget.samples=[4,8]", "tracking.mode=disabled",
]  # fmt: skip


def test_a_run_that_is_killed_goes_on_to_the_same_result(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    result = cli(*RUN, cwd=whole, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    killed = tmp_path / "killed"
    killed.mkdir()
    process = subprocess.Popen([sys.executable, "-m", "toa_exp", *RUN], cwd=killed, stderr=subprocess.PIPE)
    store = killed / "results/store.sqlite"
    while process.poll() is None and _count(store) < 20:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    engines = [child for child in children if "EngineCore" in child.name()]
    process.kill()
    process.communicate()
    assert engines and not psutil.wait_procs(engines, 120)[1]
    first = _count(store)
    assert 20 <= first < _count(whole / "results/store.sqlite")
    again = subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *RUN],
        cwd=killed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while again.poll() is None and _count(store) < first + 20:
        time.sleep(0.02)
    children = psutil.Process(again.pid).children(recursive=True)
    next(child for child in children if "EngineCore" in child.name()).kill()
    out, err = again.communicate(timeout=900)
    assert again.returncode == 0, err
    assert "0 found in the store" not in out and "died" in err
    name = "results/default/lab_math/lab/toa/seed=0/trajectories.jsonl"
    ours, theirs = ((folder / name).read_text() for folder in (killed, whole))
    assert [_decisions(line) for line in lines(ours)] == [_decisions(line) for line in lines(theirs)]


def test_a_local_model_beside_a_hosted_one_with_a_reward_on_vllm(tmp_path):
    def hosted(asked: Asked) -> Answer:
        return Answer(completion(f"A:{int(asked.body['seed']) % 100}", usage=(30, 5)))

    with serving(hosted) as endpoint:
        result = cli(
            *RUN, "task.problems=6", "+engine@engines.hosted=openai", "+ensemble.agents.ben.engine=hosted",
            f"engines.hosted.base_url={endpoint.url}", "reward=vllm_classifier",
            f"reward.model={MATH / 'judge'}", cwd=tmp_path, timeout=900,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.rglob("trajectories.jsonl")
    samples = [sample for line in lines(path.read_text()) for sample in line["samples"]]
    by_agent = {name: [one for one in samples if one["agent"] == name] for name in ("ada", "ben")}
    assert len(endpoint.asked) == len({one["draw"] for one in by_agent["ben"]}) > 6
    assert len({one["draw"] for one in by_agent["ada"]}) > 6
    assert all(one["failure"] is None and one["reward"] is not None for one in samples)
    assert len({one["reward"] for one in samples}) > 10


def _decisions(line: dict[str, Any]) -> list[Any]:
    """All of an outcome but the seconds."""
    samples = [{k: v for k, v in sample.items() if k != "seconds"} for sample in line["samples"]]
    return [line["problem"], line["budget"], line["answer"], line["metrics"], samples]


def _count(store: Path) -> int:
    import sqlite3

    if not store.is_file():
        return 0
    database = sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=60)
    try:
        return int(database.execute("select count(*) from draws").fetchone()[0])
    except sqlite3.OperationalError:  # it is being created
        return 0
    finally:
        database.close()
