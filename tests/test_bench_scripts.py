"""The scripts in experiments/ still fit the package: each runs at its smallest. Their figures are no test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXPERIMENTS.is_dir(), reason="not in a checkout"),
]


@pytest.mark.parametrize(
    "command",
    [
        "bench/batching/bench.py --texts 4 --longest 4 --max-batch 2 --rounds 1",
        "bench/client/bench.py --requests 8 --concurrency 2 --rounds 1",
        "bench/saturation/bench.py fake transformers --others --problems 4 --samples 4 --rounds 2",
        "bench/scale/bench.py --problems 20 --samples 4",
        "bench/sharing/bench.py --problems 2 --budgets 4 8 --limits 2000",
        "bench/tree/bench.py --budgets 8 --samples 8 --rounds 1",
        "lab/crossing.py --parts 2 --problems 2 --budget 8 --seeds 0",
    ],
    ids=lambda command: command.partition(" ")[0],
)
def test_a_script_runs(command, tmp_path):
    script, *options = command.split()
    result = subprocess.run(
        [sys.executable, EXPERIMENTS / script, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
