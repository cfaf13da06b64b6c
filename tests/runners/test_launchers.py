"""The cells of a sweep as jobs of other machines: submitit's local executor stands in for Slurm."""

import csv
import inspect
import os
import subprocess
import sys

import hydra
import pytest
from helpers import cli
from omegaconf import OmegaConf

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.errors import BadInput
from toa_exp.runners import connection
from toa_exp.runners.launchers import check_store

SWEEP = ["run", "-m", "task=simulated", "task.problems=4", "budget.samples=[4]", "tracking.mode=disabled"]


def launcher(name, extra):
    pytest.importorskip(f"hydra_plugins.hydra_{extra}_launcher", reason=f"hydra-{extra}-launcher is missing")
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
    return OmegaConf.to_container(config.hydra.launcher, resolve=False)


def test_slurm_takes_every_parameter(monkeypatch, tmp_path):
    """As the plugin hands them over, and as submitit writes them for sbatch."""
    values = launcher("slurm", "submitit")
    from submitit.slurm import slurm

    monkeypatch.setattr(slurm.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    own = {"_target_", "submitit_folder", "max_num_timeout", "additional_parameters"}
    executor = slurm.SlurmExecutor(tmp_path, max_num_timeout=values["max_num_timeout"])
    renamed = slurm.SlurmExecutor._equivalence_dict()
    parameters = {key: value for key, value in values.items() if key not in own}
    parameters = executor._convert_parameters(parameters)
    allowed = set(inspect.signature(slurm._make_sbatch_string).parameters)
    assert set(parameters) <= allowed and renamed["timeout_min"] == "time"
    text = slurm._make_sbatch_string("toa-exp", str(tmp_path), **parameters)
    assert "#SBATCH --time=1440" in text and "#SBATCH --gpus-per-node=1" in text
    assert "#SBATCH --mem=64GB" in text and "#SBATCH --signal=USR2@120" in text


def test_ray_takes_every_parameter():
    values = launcher("ray_cluster", "ray")
    ray = pytest.importorskip("ray")
    ray.remote(**values["ray"]["remote"])(lambda: None)
    assert set(values["ray"]["init"]) <= set(inspect.signature(ray.init).parameters)


@pytest.mark.parametrize("store", [[], ["store.path=a.sqlite,b.sqlite"]])
def test_jobs_of_slurm_share_no_file(store, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    result = cli(*SWEEP, "hydra/launcher=slurm", "method=toa,moa", *store, cwd=tmp_path)
    assert result.returncode == 2 and "cannot share the file" in result.stderr, result.stderr
    assert "choose store=postgresql" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()  # no job was made


def test_a_machine_without_slurm_is_told(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["hydra/launcher=slurm", "store=postgresql", "store.url=postgresql://h/d", "method=toa,moa"]
    result = cli(*SWEEP, *given, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "whose commands (srun, sbatch) are not on" in result.stderr
    assert "hydra/launcher=submitit_local" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()  # no job was made


def test_a_file_is_shared_on_one_machine_alone(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    file, url = OmegaConf.create({"store": {"path": "s.sqlite"}}), "postgresql://db/study"
    launchers = "hydra_plugins.hydra_{0}_launcher.{0}_launcher.{1}"
    for number in (1, 2):
        monkeypatch.setattr(connection, "machines", lambda number=number: number)
        check_store(file, launchers.format("submitit", "LocalLauncher"))
        check_store(OmegaConf.create({"store": {"path": url}}), launchers.format("ray", "RayLauncher"))
        if number == 1:
            check_store(file, launchers.format("ray", "RayLauncher"))
    with pytest.raises(BadInput, match="the Ray cluster has 2 machines"):
        check_store(file, launchers.format("ray", "RayLauncher"))
    with pytest.raises(BadInput, match="Slurm"):
        check_store(file, launchers.format("submitit", "SlurmLauncher"))


def test_without_an_address_no_cluster_that_runs_here_is_joined(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = []
    monkeypatch.setattr(connection, "connect", lambda setting, options: told.append(options["address"]))
    for address in (None, "auto", "node1:6379"):
        with connection.cluster(address):
            pass
    assert told == ["local", "auto", "node1:6379"]


OWN_METHOD = """
from toa_exp.core import Request

def mine(problem, agents, budget, rng):
    for _ in range(budget):
        yield [Request(agents[0])]
"""


@pytest.mark.slow
@pytest.mark.ray
def test_cells_on_a_cluster_work_where_the_sweep_was_started(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "own.py").write_text(OWN_METHOD)
    start = (
        "from ray.cluster_utils import Cluster\n"
        "made = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})\n"
        "print(made.address, flush=True)\ninput()\nmade.shutdown()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=elsewhere, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        address = next(
            line for line in cluster.stdout if line.startswith(("127.", "1")) and ":" in line
        ).strip()
        try:
            sweep = [*SWEEP, "hydra/launcher=ray_cluster", "method._target_=own.mine", "seed=0,1"]
            environment = {**os.environ, "RAY_ADDRESS": address}
            refused = cli(*sweep, cwd=here, env=environment)
            assert refused.returncode == 2 and "no room for a cell" in refused.stderr, refused.stderr
            assert "takes 1 GPU, 8 CPU" in refused.stderr and not (here / "results").exists()
            less = ["hydra.launcher.ray.remote.num_gpus=0", "hydra.launcher.ray.remote.num_cpus=1"]
            result = cli(*sweep, *less, cwd=here, env=environment)
            assert result.returncode == 0, result.stderr
        finally:
            cluster.communicate("\n", timeout=60)
    assert len(list(here.rglob("curve.csv"))) == 2 and (here / "results" / "store.sqlite").is_file()
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["submitit_local", pytest.param("ray_local", marks=pytest.mark.ray)])
def test_a_sweep_of_two_cells(name, tmp_path, monkeypatch):
    pytest.importorskip(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that is not meant
    sweep = [*SWEEP, f"hydra/launcher={name}"]
    result = cli(*sweep, "method=toa,random", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for method in ("toa", "random"):
        folder = tmp_path / "results" / "default" / "simulated" / "simulated" / method / "seed=0"
        with (folder / "curve.csv").open() as file:
            assert [row["problems"] for row in csv.DictReader(file)] == ["4"]
    # A store each: in a shared one the cell that only replays may find what the other has drawn by then.
    apart = "store.path=${results}/${engine._target_}.sqlite"
    failing = cli(*sweep, "method=random", "seed=5", "engine=replay,simulator", apart, cwd=tmp_path)
    assert failing.returncode == 1 and "4 of 4 problems have no answer" in failing.stderr
    assert "Traceback" not in failing.stderr
    root = tmp_path / "results" / "default" / "simulated" / "simulated"
    assert (root / "random,engine=simulator" / "seed=5" / "curve.csv").is_file()  # the other cell ran
    assert cli(*sweep, "method=random", "task.problems=0,4", cwd=tmp_path).returncode == 2
