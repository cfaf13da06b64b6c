"""Rows of a data set: from a local file, or from the hub at a pinned revision."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from toa_exp.errors import BadInput

Row = dict[str, Any]


def rows(path: str | None, hub: dict[str, Any] | None) -> Iterator[Row]:
    """The rows of a JSON Lines file (gzip by its ending .gz), or else of a hub data set.

    `hub` holds `path`, `name`, `split` and `revision` as `datasets.load_dataset` takes them. Raises
    BadInput for a file that is missing or no JSON Lines, with the line, and for an unreachable hub.
    """
    if path is not None:
        yield from _file_rows(Path(path).expanduser())
    elif hub:
        yield from _hub_rows(hub)
    else:
        raise BadInput("the task has no data: give task.path=<file.jsonl>")


def _file_rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise BadInput(f"task.path={path}: no such file; give a JSON Lines file (.jsonl or .jsonl.gz)")
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(path, number, line)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise BadInput(f"{path} cannot be read as UTF-8 JSON Lines: {error}") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def _row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{path}, line {number} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadInput(f"{path}, line {number} is no JSON object")
    return row


def _hub_rows(hub: dict[str, Any]) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        data = load_dataset(hub["path"], hub.get("name"), split=hub["split"], revision=hub.get("revision"))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"the data set {hub['path']!r} could not be loaded from the hub "
            f"({type(error).__name__}: {error}). Where the hub is out of reach, give a JSON Lines "
            f"file of the same fields: task.path=<file>"
        ) from error
    for row in data:
        yield dict(row)
