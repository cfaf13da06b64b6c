"""What Ray says, in a line."""

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from ray.exceptions import ActorDiedError  # noqa: E402

from toa_exp.runners.connection import last_line  # noqa: E402


def test_why_an_actor_died_is_the_last_that_ray_says():
    error = ActorDiedError()
    assert last_line(error) == "The actor died unexpectedly before finishing this task."
    error.error_msg = "The actor died.\n\tpid: 7\nIts worker process has died. " + "x" * 1000
    assert last_line(error).startswith("Its worker process has died. x") and len(last_line(error)) < 500
