"""The way into a Ray cluster, and what is there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from toa_exp.errors import BadInput

_SHOWN = 400  # characters of a line


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connected to a Ray cluster; raises BadInput where there is none at the address."""
    if ray.is_initialized():  # this process is itself a worker, or its owner manages Ray
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS")
    # Without an address Ray would join a cluster that runs, or ran, on this machine.
    options = {"address": where} if where else {"address": "local", "include_dashboard": False}
    connect("runner.address", {**options, "logging_level": logging.WARNING})
    try:
        yield
    finally:
        ray.shutdown()


def connect(setting: str, options: dict[str, Any]) -> None:
    """`ray.init` with options; raises BadInput, which names the `setting` of the address, where it fails."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = options.get("address")
    try:
        _knock(where)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        raise BadInput(
            f"there is no Ray cluster at {where!r} that lets us in ({first_line(error)}). Start one with "
            f"`ray start --head` and give {setting}=<host>:6379, or leave it out to use this machine "
            f"alone. One that asks for a token is given it by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
            f"~/.ray/auth_token, on every machine"
        ) from error


def nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in known if node["Alive"]]


def machines() -> int:
    """How many machines the nodes are on."""
    return len({node["NodeManagerAddress"] for node in nodes()})


def first_line(error: Exception) -> str:
    """The first line of a message of Ray's, which go on for many."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def last_line(error: Exception) -> str:
    """The last line of a message of Ray's, which says why where there are several."""
    return str(error).strip().rpartition("\n")[2][:_SHOWN] or type(error).__name__


def _knock(address: str | None) -> None:
    """Raise OSError where nobody listens at host:port; Ray would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()
