"""Runs on a Ray cluster: the same bytes as on one machine, whatever dies on the way."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers import cli, lines

from toa_exp.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# Simulated agents that take their time, and note which process drew what, and whether it was stored before.
SLOW_AGENTS = """
import asyncio, os
from toa_exp.engines.simulator import Simulator
from toa_exp.storage import open_store

class Slow(Simulator):
    def __init__(self, agents, *, where: str):
        super().__init__(agents)
        self._store = open_store(where)

    async def sample(self, draw):
        ((stored,),) = self._store.rows("SELECT count(*) FROM draws WHERE key = ?", (draw.key,))
        with open("drawn", "a") as file:
            file.write(f"{os.getpid()} {draw.request.agent} {draw.key.hex()} {stored}\\n")
        await asyncio.sleep(draw.key[0] / 2000)
        return await super().sample(draw)
"""
RUN = ["run", "task=simulated", "task.problems=60", "method=toa", "budget.samples=[6,12]", "concurrency=4",
       "tracking.mode=disabled", "backoff=0.1"]  # fmt: skip
RESULTS = Path("results/default/simulated/simulated/toa/seed=0")


@pytest.fixture
def cluster():
    """Two nodes for the work, and a head that does none."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.work = [made.add_node(num_cpus=2), made.add_node(num_cpus=2)]
    yield made
    made.shutdown()


def results(folder):
    return {name: (folder / RESULTS / name).read_bytes() for name in ("trajectories.jsonl", "curve.csv")}


def scores(folder):
    """The scores in the store, by key."""
    with closing(Store(next(folder.rglob("*.sqlite")))) as store:
        return [*store.rows("SELECT key, reward, tokens FROM scores ORDER BY key")]


def drawn(folder):
    path = folder / "drawn"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(process, folder, draws):
    while len(drawn(folder)) < draws:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_an_actor_and_a_node_may_die(cluster, request, tmp_path, kind):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert cli(*RUN, cwd=whole).returncode == 0
    where = str(killed / "store.sqlite")
    if kind == "postgresql":
        where = request.getfixturevalue("postgres").database()
    (killed / "slow_agents.py").write_text(SLOW_AGENTS)
    command = [
        *RUN, "engine._target_=slow_agents.Slow", "+engine.where=${store.path}", f"store.path={where}",
        "runner=ray", f"runner.address={cluster.address}", "runner.workers=4", "runner.shard=5",
        "runner.agent.replicas=0", "runner.agents={cedar:{replicas:2}}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *command],
        cwd=killed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(process, killed, 60)
    actor = next(int(pid) for pid, agent, *_ in drawn(killed) if agent == "cedar")
    os.kill(actor, signal.SIGKILL)
    wait_for(process, killed, 200)
    cluster.remove_node(cluster.work[1], allow_graceful=False)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "an actor died" in err and "another takes it over" in err
    assert results(killed) == results(whole)
    assert {stored for *_, stored in drawn(killed)} == {"0"}  # nothing that was stored was drawn again
    assert "s3cret" not in err + (killed / RESULTS / "config.yaml").read_text()
    assert cli("store", "verify", f"store.path={where}", cwd=killed).returncode == 0


# A run whose log says every second how things stand.
IMPATIENT = """
import runpy, sys
from toa_exp import progress
progress._LINE = 1.0
runpy.run_module("toa_exp", run_name="__main__")
"""


def test_what_a_shard_has_done_is_seen_before_it_ends(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    (tmp_path / "slow_agents.py").write_text(SLOW_AGENTS)
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    command = [
        *RUN, "task.problems=40", "engine._target_=slow_agents.Slow", "+engine.where=${store.path}",
        "store.path=" + str(tmp_path / "store.sqlite"), "runner=ray", "runner.workers=1",
        "runner.agent.replicas=0",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "impatient.py", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = (tmp_path / RESULTS / "run.log").read_text()
    under_way = [int(found) for found in re.findall(r" 0 of 40 problems done; (\d+) samples", said)]
    assert under_way == sorted(under_way) and 0 < under_way[-1] <= 40 * (6 + 12)
    assert f"done: Counts(samples={40 * (6 + 12)}, " in said


ENSEMBLE = [
    "reward=ensemble", "+reward@reward.members.a=lab_judge", "+reward@reward.members.b=lab_weak",
    "reward.rule=standardised_mean", "reward.calibration=2", "runner.reward.replicas=2",
]  # fmt: skip


@pytest.mark.parametrize("reward", [[], ENSEMBLE])
def test_models_as_actors(tmp_path, reward):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    on_ray, rewards = reward[-1:], reward[:-1]
    run = [
        "run", "task=lab_math", "ensemble=lab", "~ensemble.agents.cleo", "~ensemble.agents.dan",
        "task.problems=6", "budget.samples=[4]", "method=toa", "tracking.mode=disabled", *rewards,
    ]  # fmt: skip
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    spread.mkdir()
    alone.mkdir()
    result = cli(*run, "runner=ray", "runner.workers=2", "runner.shard=2", *on_ray, cwd=spread)
    assert result.returncode == 0, result.stderr
    (path,) = spread.rglob("trajectories.jsonl")
    written = path.read_bytes()
    again = cli(*run, cwd=spread)
    assert "; 0 samples drawn" in again.stdout and path.read_bytes() == written
    assert cli(*run, cwd=alone).returncode == 0
    (other,) = alone.rglob("trajectories.jsonl")
    found = [
        [
            [(sample["draw"], sample["reward"]) for sample in line["samples"]]
            for line in lines(one.read_text())
        ]
        for one in (path, other)
    ]
    assert found[0] == found[1]  # the seconds, which are measured, differ
    assert scores(spread) == scores(alone)  # those of members, and what they are standardised by, included


def test_a_model_without_a_gpu_is_refused_on_a_cluster_that_has_some(cluster, tmp_path):
    cluster.add_node(num_cpus=1, num_gpus=2)
    command = ["run", "task=lab_math", "ensemble=lab", "runner=ray", f"runner.address={cluster.address}"]
    result = cli(*command, "tracking.mode=disabled", cwd=tmp_path)
    assert result.returncode == 2 and "agent 'ada' (runner.agents.ada) runs a model" in result.stderr
    assert "'runner.agents={ada: {replicas: 1, num_gpus: 1}}'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["runner.agent.num_gpus=64"], "no room for agent 'cedar'"),
        (["runner.agents={cedra:{replicas:2}}"], "Did you mean 'cedar'?"),
        (["runner.agent.num_gpu=1"], "Allowed: num_cpus, num_gpus, replicas, resources"),
        (["runner.workers=0"], "runner.workers=0 must be at least 1"),
        (["runner.address=127.0.0.1:1"], "there is no Ray cluster at '127.0.0.1:1' that lets"),
        (["ensemble.agents.cedar.options.skill=high"], "skill"),
    ],
)
def test_bad_input(options, message, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    result = cli(*RUN, "runner=ray", *options, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_a_cluster_whose_token_is_not_here_is_told(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        result = cli(*RUN, "runner=ray", f"runner.address={address}", cwd=tmp_path, env=environment)
    assert result.returncode == 2 and "RAY_AUTH_TOKEN" in result.stderr, result.stderr
    assert "no authentication token was found" in result.stderr and "Traceback" not in result.stderr
