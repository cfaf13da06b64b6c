"""Reads files of outputs: JSON Lines, JSON and CSV, as they are or gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

from toa_exp.errors import BadInput
from toa_exp.tasks.source import GZIP, Row


def read(path: Path, key: str) -> list[Row]:
    """The rows of a file; `key` is the option that named it, for errors.

    A file that starts with a bracket is a JSON list of objects, one that starts with a brace is
    JSON Lines, any other is CSV with a header; gzip is told by its first bytes. Raises BadInput for
    what cannot be read, with the line.
    """
    path = path.expanduser()
    if not path.is_file():
        raise BadInput(f"{key}={path}: no such file")
    text = _text(path)
    start = text.lstrip()[:1]
    if not start:
        raise BadInput(f"{key}={path} is empty")
    rows = {"[": _list, "{": _lines}.get(start, _table)(path, text)
    if not rows:
        raise BadInput(f"{key}={path} has no rows")
    return rows


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        if content[:2] == GZIP:
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read as UTF-8 text: {error}") from error


def _lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_object(path, f"line {number}", _json(path, f"line {number}", line)))
    return rows


def _list(path: Path, text: str) -> list[Row]:
    values = _json(path, "the file", text)
    return [_object(path, f"entry {number}", value) for number, value in enumerate(values, start=1)]


def _table(path: Path, text: str) -> list[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # an answer may be long
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise BadInput(f"{path}, line 1: a column occurs twice: {', '.join(names)}")
        for row in reader:
            if None in row or None in row.values():
                raise BadInput(f"{path}, line {reader.line_num}: not as many fields as the header has")
            rows.append(dict(row))
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _json(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text, strict=False)  # raw control characters in a string are no harm
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}, {where} is no JSON: {error}") from error


def _object(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise BadInput(f"{path}, {where} is no JSON object")
    return value
