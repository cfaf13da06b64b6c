"""vLLM's engines as actors of a Ray cluster: its CPU build will do. Run by `make test-vllm`."""

import pytest
from helpers import cli, lines

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm.engine.arg_utils")
pytest.importorskip("ray")

RUN = [
    "run", "engine=vllm", "task=lab_math", "ensemble=lab", "~ensemble.agents.cleo", "~ensemble.agents.dan",
    "task.problems=4", "budget.samples=[4]", "method=toa", "tracking.mode=disabled",
]  # fmt: skip


def samples(folder):
    (path,) = folder.rglob("trajectories.jsonl")
    return [[(s["draw"], s["reward"]) for s in line["samples"]] for line in lines(path.read_text())]


def test_the_trajectories_are_those_of_one_process(tmp_path):
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    spread.mkdir()
    alone.mkdir()
    result = cli(*RUN, "runner=ray", "runner.workers=2", cwd=spread, timeout=900)
    assert result.returncode == 0, result.stderr
    result = cli(*RUN, cwd=alone, timeout=900)
    assert result.returncode == 0, result.stderr
    assert samples(spread) == samples(alone)
