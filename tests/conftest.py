"""Fixtures that several tests share."""

import json
import os
from pathlib import Path

import pytest

pytest_plugins = ["postgres"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"  # tests of tracking set it themselves


@pytest.fixture
def shared() -> Path:
    """The folder of reference data that is not part of the repository."""
    folder = Path(os.environ.get("TOA_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("reference data is not here; set TOA_SHARED to its folder")
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A JSON Lines file of twelve sums."""
    path = tmp_path / "questions.jsonl"
    rows = [{"id": f"q{i}", "prompt": f"What is {i} + {i}?", "reference": str(2 * i)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
