"""A wheel in an environment of its own runs from any folder."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*build, str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_configuration_and_no_more_than_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "toa_exp/conf/config.yaml" in names and "toa_exp/conf/method/toa.yaml" in names
    shipped = {name for name in names if ".dist-info/" not in name}
    in_tree = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "toa_exp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == in_tree


def test_the_installed_wheel_runs_from_any_folder(wheel, tmp_path):
    """The libraries are borrowed from this environment; the package itself is the wheel's."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    rows = [{"id": i, "prompt": f"What is {i}?", "reference": str(i)} for i in range(3)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    python = environment / "bin" / "python"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = [str(python), "-c", "import toa_exp; print(toa_exp.__file__)"]
    assert str(site) in subprocess.run(where, capture_output=True, text=True, cwd=folder, env=clean).stdout
    run = [
        "-c",
        "from toa_exp.cli import main; main()",
        "run",
        "task=jsonl",
        "task.path=q.jsonl",
        "budget.samples=2",
    ]
    result = subprocess.run([str(python), *run], capture_output=True, text=True, cwd=folder, env=clean)
    assert result.returncode == 0, result.stderr
    assert (folder / "results/default/jsonl/simulated/toa/seed=0/curve.csv").is_file()
