"""What vLLM needs to be found here, and what its processes find in the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from toa_exp.engines.loading import ENVIRONMENT, ONE_AT_A_TIME
from toa_exp.engines.orphans import MARK
from toa_exp.errors import BadInput, missing_extra

# What vLLM's processes find in the environment, unless the user says otherwise.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which do not survive a fork
}
_CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else several engines are bound to the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process for the engine instead of two
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}
_before: dict[str, str] = {}  # as it was when the first of those that start now began
_starting = 0


def check_vllm() -> None:
    """Raise BadInput where vLLM is not installed or does not go with what is."""
    try:
        import vllm.engine.arg_utils  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "vllm":
            raise missing_extra("vllm", "vllm") from error
        raise BadInput(
            f"vllm needs {error.name}, which is not installed; pip install {error.name}"
        ) from error
    except (ImportError, OSError) as error:
        raise BadInput(
            f"vllm cannot be imported ({error}); install it with the torch that it wants: "
            f"pip install -e '.[vllm]' in the folder of toa-exp, without constraints.txt"
        ) from error


def cpu_environment(engines: int) -> dict[str, str]:
    """What one of `engines` processes of vLLM on a CPU finds in the environment, unless the user says."""
    return {**_CPU_ENVIRONMENT, "OMP_NUM_THREADS": str(max(1, _cores() // engines))}


def cpu_at_once(engines: int) -> int:
    """How many of `engines` processes of vLLM it takes to keep all cores of the CPU busy."""
    given = {**cpu_environment(engines), **os.environ}["OMP_NUM_THREADS"]
    threads = given.partition(",")[0]  # then those of nested regions
    return max(1, _cores() // int(threads)) if threads.isdecimal() and int(threads) else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def environment(cpu: bool, engines: int) -> Iterator[None]:
    """The environment for vLLM's processes, which is as before when the last of them has started.

    It is changed only while nobody loads, imports or makes tokens, who read it.
    """
    global _starting
    with ONE_AT_A_TIME, ENVIRONMENT:
        if not _starting:
            _before.clear()
            _before.update(os.environ)
        _starting += 1
        for name, value in {**_ENVIRONMENT, **MARK, **(cpu_environment(engines) if cpu else {})}.items():
            os.environ.setdefault(name, value)
    try:
        yield
    finally:
        with ONE_AT_A_TIME, ENVIRONMENT:
            _starting -= 1
            if not _starting:
                _restore()


def _restore() -> None:
    for name in os.environ.keys() - _before.keys():
        del os.environ[name]
    for name, value in _before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
