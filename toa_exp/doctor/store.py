"""The store: whether a run could open it."""

from __future__ import annotations

import os
from pathlib import Path

from toa_exp.doctor.findings import Findings
from toa_exp.storage import is_url, open_store


def check_store(findings: Findings, where: str) -> None:
    """Open a store as a run does; one that is a file and not there yet is not made."""
    with findings.checking("store"):
        if is_url(where) or Path(where).exists():
            store = open_store(where)
            store.close()
            findings.ok("store", f"the {store.KIND} {store.name} can be used")
        else:
            _check_folder(findings, Path(where).absolute())


def _check_folder(findings: Findings, path: Path) -> None:
    """Whether a file that is not there could be made."""
    folder = next(parent for parent in path.parents if parent.exists())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        findings.ok("store", f"{path} is not there yet; a run makes it")
    else:
        reason = "may not be written to" if folder.is_dir() else "is no folder"
        findings.fail(
            "store",
            f"{path} cannot be made, since {folder} {reason}; give store.path=<file> or results=<folder>",
        )
