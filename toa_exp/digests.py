"""Digests of large files, remembered between runs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

_SMALL = 16 << 20  # bytes; a smaller file is read again each time


def file_digest(path: Path) -> str:
    """A digest of a file's content.

    That of a large file is kept in the user's cache folder, under its path, size and time of change.
    """
    status = path.stat()
    if status.st_size <= _SMALL:
        return _digest(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toa-exp" / "digests.json"
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known = _known(cache)
    if key not in known:
        known = {**_known(cache), key: _digest(path)}
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known, indent=0))
        partial.replace(cache)
    return known[key]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _known(cache: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):  # a damaged cache costs time, nothing else
        return {}
    return known
