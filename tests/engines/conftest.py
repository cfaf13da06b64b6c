"""What tests of remote engines find in their environment."""

import pytest
from remote import alone


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy on the way, and a key in $MY_PROVIDER."""
    alone(monkeypatch, "MY_PROVIDER")
