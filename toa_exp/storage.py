"""What every store gives, and the choice between them: a file is SQLite, a URL PostgreSQL."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from toa_exp.draws import Draw, Sample, Score, ScoreKey, canonical, digest
from toa_exp.errors import BadInput, choose
from toa_exp.tables import DRAWS, SCORES, Table

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEMES = ["postgresql", "postgres"]
_blob = bytearray  # sqlite3 binds it as it is; for bytes it searches for an adapter, which takes longer
Value = TypeVar("Value")


class Storage(ABC):
    """Draws and scores by key, written once: the first write of a key wins.

    `name` is what messages call it, without a password. Raises StoreError where it cannot be used.
    """

    name: str
    KIND: ClassVar[str]
    """What it is: a file, a database."""
    ENTRY: ClassVar[str]
    """The column of draws that grows as they are stored."""

    def register(self, fingerprint: Mapping[str, Any]) -> bytes:
        """Remember what an agent or a reward is; returns the digest that its rows carry."""
        text = canonical(fingerprint)
        key = digest(text)
        self._register(key, text.decode())
        return key

    @abstractmethod
    async def get_draw(self, draw: Draw) -> Sample | None:
        """The sample that the store holds for a draw, or None."""

    @abstractmethod
    async def get_score(self, key: ScoreKey) -> Score | None:
        """The score stored under `key`, or None."""

    def put_draw(self, draw: Draw, sample: Sample) -> Awaitable[Sample]:
        """Put a sample into the next commit; awaited, what the store then holds under the draw's key."""
        usage = sample.usage
        values = (
            _blob(draw.key),
            _blob(draw.agent),
            _blob(draw.prompt),
            draw.occurrence,
            draw.seed,
            sample.text,
            usage.prompt_tokens,
            usage.completion_tokens,
            sample.seconds,
            sample.failure,
        )
        return self._put(DRAWS, draw.problem.id, draw.key, values, sample)

    def put_score(self, key: ScoreKey, score: Score) -> Awaitable[Score]:
        """Put a score into the next commit; awaited, what the store then holds under the key."""
        digests = map(_blob, (key.digest, key.content, key.reward, key.text))
        values = (*digests, score.reward, score.tokens, score.seconds)
        return self._put(SCORES, key.problem, key.digest, values, score)

    @abstractmethod
    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query with ? for each value, one at a time.

        Texts and problems' ids may be bytes; see `toa_exp.draws.decode`.
        """

    @abstractmethod
    def size(self) -> int:
        """Bytes on disk."""

    @abstractmethod
    def faults(self) -> Iterator[str]:
        """What is wrong with the structure that holds the rows."""

    @abstractmethod
    def close(self) -> None:
        """Commit what is pending and let go of it."""

    @abstractmethod
    def _register(self, key: bytes, text: str) -> None: ...

    @abstractmethod
    def _put(
        self, table: Table[Value], problem: str, key: bytes, values: tuple[Any, ...], value: Value
    ) -> Awaitable[Value]: ...


def is_url(where: str) -> bool:
    """Whether `store.path` names a server instead of a file; raises BadInput for one of another kind."""
    match = _URL.match(where)
    if match is not None and match[1] not in _SCHEMES:
        raise choose("scheme of store.path:", match[1], _SCHEMES)
    return match is not None


def path_of(store: Mapping[str, Any]) -> str:
    """What the configuration of a store says where it is. Raises BadInput for what is no path."""
    path = store.get("path")
    if not isinstance(path, str) or not path:
        raise BadInput(
            f"store.path={path}: give a file, or store=postgresql store.url=postgresql://user@host:5432/database"
        )
    return path


def open_store(where: str, *, patient: bool = False) -> Storage:
    """The store at a path or a postgresql:// URL, made on first use.

    `patient` waits a minute for a server that is not there.
    """
    if is_url(where):
        from toa_exp.postgresql import PostgreSQL

        return PostgreSQL(where, patient=patient)
    from toa_exp.store import Store

    return Store(Path(where))


def open_existing(where: str) -> Storage:
    """The store at a path or a URL; raises BadInput where there is no such file."""
    if not is_url(where) and not Path(where).is_file():
        raise BadInput(
            f"there is no store at {where}; give store.path=<file or URL>, or results=<folder of the runs>"
        )
    return open_store(where)
