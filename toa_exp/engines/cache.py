"""The key-value cache of a batch whose rows come and go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns a buffer has to spare at least, so that few steps have to copy it

KeysAndValues = list[torch.Tensor]
"""Keys and values of one layer, each [rows, heads, columns, head size]."""


class RowCache(Cache):
    """Keys and values of `rows` rows, which all end at column `end` and begin where they may.

    The columns left of `begin` are used by no row. Buffers have places and columns to spare, so that
    a step writes one column and copies nothing. Made for the layers of a prefill, as `admit` takes them.
    """

    def __init__(self, arrived: list[KeysAndValues]) -> None:
        self.rows = 0
        self.begin = 0
        self.end = 0
        self._layers = [_Layer(self, [states[:0, :, :0] for states in layer]) for layer in arrived]
        super().__init__(layers=list(self._layers))

    def admit(self, arrived: list[KeysAndValues]) -> None:
        """Add rows, padded on the left, behind those that are here."""
        count, _, width, _ = arrived[0][0].shape
        start, stop = self.rows, self.rows + count
        self._make_room(stop, width)
        for layer, added in zip(self._layers, arrived, strict=True):
            for buffer, states in zip(layer.buffers, added, strict=True):
                buffer[start:stop, :, self.end - width : self.end] = states
        self.rows = stop
        self.begin = min(self.begin, self.end - width)

    def advance(self) -> None:
        """Take note that a step wrote its column."""
        self.end += 1
        self._make_room(self.rows, 0)

    def leave(self, holes: list[int], movers: list[int], rows: int, longest: int) -> None:
        """Keep `rows` rows, those of `movers` in the places of `holes`.

        `longest` is the number of columns that the longest of them has in use.
        """
        if holes:
            for buffer in self._buffers():
                buffer[holes, :, self.begin : self.end] = buffer[movers, :, self.begin : self.end]
        self.rows = rows
        self.begin = self.end - longest

    def wipe(self, rows: list[int]) -> None:
        """Zero rows that are not finite: no mask would hide them from who takes their place."""
        for buffer in self._buffers():
            buffer[rows] = 0

    def _buffers(self) -> Iterator[torch.Tensor]:
        return (buffer for layer in self._layers for buffer in layer.buffers)

    def _make_room(self, rows: int, width: int) -> None:
        """See that there are `rows` places, `width` columns up to `end` and one column behind it."""
        places, _, columns, _ = self._layers[0].buffers[0].shape
        if rows <= places and width <= self.end < columns:
            return
        used = self.end - self.begin
        end = max(used, width)
        columns = end + max(_ROOM, end // 4)
        places = 1 << (rows - 1).bit_length()
        for layer in self._layers:
            old = layer.buffers
            layer.buffers = [
                buffer.new_zeros(places, buffer.shape[1], columns, buffer.shape[3]) for buffer in old
            ]
            for before, after in zip(old, layer.buffers, strict=True):
                after[: self.rows, :, end - used : end] = before[: self.rows, :, self.begin : self.end]
        self.begin, self.end = end - used, end


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The part of a `RowCache` that one layer of the model sees."""

    def __init__(self, cache: RowCache, buffers: KeysAndValues) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers = buffers
        self._cache = cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the newest column of all rows; returns all columns in use."""
        rows, begin, end = self._cache.rows, self._cache.begin, self._cache.end
        keys, values = self.buffers
        keys[:rows, :, end : end + 1] = key_states
        values[:rows, :, end : end + 1] = value_states
        return keys[:rows, :, begin : end + 1], values[:rows, :, begin : end + 1]

    def get_seq_length(self) -> int:
        """Columns in use before the step under way."""
        return self._cache.end - self._cache.begin
