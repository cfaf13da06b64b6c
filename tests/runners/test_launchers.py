"""The cells of a sweep as jobs of other machines: submitit's local executor stands in for Slurm."""

import csv
import inspect

import hydra
import pytest
from helpers import cli
from omegaconf import OmegaConf

from toa_exp import labels
from toa_exp.app import CONF

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["submitit_local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_sweep_of_two_cells(name, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
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
