"""Tells whether the files of a lab model are the ones that were measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

from toa_exp.errors import BadInput

SUMS = "SHA256SUMS"
"""Beside the tasks' folders, as `sha256sum */*/*` there writes it; models without it are not checked."""


def check_sums(folder: Path) -> None:
    """Raise BadInput where a file of a model, `<weights>/<task>/<name>`, has another content than noted.

    Flipped bits load without complaint, and what such a model writes looks like an answer.
    """
    root = folder.parent.parent
    if not (root / SUMS).is_file():
        return
    for line in (root / SUMS).read_text().splitlines():
        noted, _, name = line.partition("  ")
        path = root / name
        if path.parent == folder and path.is_file() and _sum(path) != noted:
            raise BadInput(
                f"{path} is damaged: it is not the file that {root / SUMS} notes. Reinstall toa-exp (in a "
                f"checkout: git restore {path}), or make the models anew elsewhere: toa-exp lab train"
            )


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
