"""Faults of a reward server: no answer is drawn again for them, and none is scored by them."""

from pathlib import Path

import pytest
from process import NEVER, Service, arguments, service, stored, toa, trajectories
from test_endpoint_faults import undisturbed

__all__ = ["undisturbed"]
pytestmark = pytest.mark.slow


def test_a_reward_server_that_is_down(undisturbed: tuple[Path, list[object], int], tmp_path: Path):
    questions, expected, total = undisturbed
    run, reward = tmp_path / "run", Service(tmp_path)
    with service(tmp_path) as server:
        given = arguments(questions, server.url, f"reward.base_url={reward.url}", "reward.longest_wait=1")
        result = toa(run, *given)
        assert result.returncode == 1
        assert f"reward at {reward.url} cannot be reached" in result.stderr
        draws, scores = stored(run)
        assert draws and not scores and server.answered.total() == len(draws)
        server.forget()
        reward.start()
        try:
            result = toa(run, *given)
        finally:
            reward.kill()
        assert result.returncode == 0, result.stderr
        assert trajectories(run) == expected
        assert server.answered.total() + reward.answered.total() == total - len(draws)


@pytest.mark.parametrize("first", [0, 9])
def test_a_reward_that_is_not_a_number(first, undisturbed: tuple[Path, list[object], int], tmp_path: Path):
    questions, expected, total = undisturbed
    run = tmp_path / "run"
    with service(tmp_path) as server, service(tmp_path, "nan", first, NEVER) as reward:
        given = arguments(questions, server.url, f"reward.base_url={reward.url}")
        result = toa(run, *given)
        assert result.returncode == 1
        assert f"reward at {reward.url} gave no finite score" in result.stderr and "NaN" in result.stderr
        draws, scores = stored(run)
        assert len(scores) == first == reward.answered.total()
        server.forget()
        result = toa(run, *arguments(questions, server.url))
        assert result.returncode == 0, result.stderr
        assert trajectories(run) == expected
        assert server.answered.total() == total - len(draws) - len(scores)
