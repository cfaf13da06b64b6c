"""Rows of a data set: from a local file, or from the hub at a pinned revision."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from toa_exp.errors import BadInput
from toa_exp.hub import library

Row = dict[str, Any]
GZIP = b"\x1f\x8b"  # what gzipped files start with


def rows(path: str | None, hub: dict[str, Any] | None, key: str = "task.path") -> Iterator[Row]:
    """The rows of a JSON Lines or JSON file (gzipped or not), or else of a hub data set.

    `hub` holds `path`, `name`, `split` and `revision` as `datasets.load_dataset` takes them, or
    `path`, `revision` and `file`, one such file of the data set. `key` is the option that names a local
    file. Raises BadInput for a file that is missing or cannot be read, with the line, and for an
    unreachable hub.
    """
    if path is not None:
        yield from _file_rows(Path(path).expanduser(), key)
    elif hub:
        yield from _hub_rows(hub, key)
    else:
        raise BadInput(f"there are no data: give {key}=<file.jsonl>")


def chosen_ids(ids: Sequence[str | int] | str | int | None) -> set[str] | None:
    """The ids that `task.ids` names: a list, one id, or a file of them (a JSON list, or one a line).

    None is all. Raises BadInput for a file that is no list.
    """
    if ids is None:
        return None
    if isinstance(ids, str) and (file := Path(ids).expanduser()).is_file():
        text = file.read_text(encoding="utf-8")
        try:
            ids = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.split()
        except ValueError as error:
            raise BadInput(f"task.ids={file} is no JSON list: {error}") from error
        if not isinstance(ids, list):
            raise BadInput(f"task.ids={file} is no list of ids")
    return {str(identifier) for identifier in ([ids] if isinstance(ids, str | int) else ids)}


def _file_rows(path: Path, key: str) -> Iterator[Row]:
    if not path.is_file():
        raise BadInput(f"{key}={path}: no such file; give a JSON Lines file (.jsonl or .jsonl.gz)")
    with _open(path) as file:
        try:
            if path.name.removesuffix(".gz").endswith(".json"):
                yield from _list_rows(path, file)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(path, number, line)
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadInput(f"{path} cannot be read as UTF-8 JSON Lines: {error}") from error


def _list_rows(path: Path, file: TextIO) -> Iterator[Row]:
    try:
        values = json.load(file)
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadInput(f"{path} is no JSON list of objects")
    yield from values


def _open(path: Path) -> TextIO:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
    if zipped:
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
    return path.open(encoding="utf-8-sig")


def _row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{path}, line {number} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadInput(f"{path}, line {number} is no JSON object")
    return row


def _hub_rows(hub: dict[str, Any], key: str) -> Iterator[Row]:
    try:
        if hub.get("file"):
            yield from _file_rows(Path(_hub_file(hub)), key)
            return
        data = _hub_data(hub)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"the data set {hub['path']!r} could not be loaded from the hub "
            f"({type(error).__name__}: {error}). Where the hub is out of reach, give a file of the same "
            f"fields, {key}=<file>: {_where(hub)}"
        ) from error
    for row in data:
        yield dict(row)


def _hub_file(hub: dict[str, Any]) -> str:
    file: str = library().hf_hub_download(
        hub["path"], hub["file"], repo_type="dataset", revision=hub.get("revision")
    )
    return file


def _hub_data(hub: dict[str, Any]) -> Any:
    from datasets import load_dataset

    return load_dataset(hub["path"], hub.get("name"), split=hub["split"], revision=hub.get("revision"))


def _where(hub: dict[str, Any]) -> str:
    """The address of a hub data set."""
    address = f"https://huggingface.co/datasets/{hub['path']}"
    if hub.get("file"):
        return f"{address}/resolve/{hub.get('revision') or 'main'}/{hub['file']}"
    return f"{address}, split {hub['split']}" + (f" of {hub['name']}" if hub.get("name") else "")
