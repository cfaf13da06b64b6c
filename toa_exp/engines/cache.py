"""The key-value cache of a batch whose rows come and go."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns a buffer has to spare at least, so that few steps have to copy it


class _Layer(DynamicLayer):
    """One layer: `kept` holds keys and values, each [places, heads, columns, head size]."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache
        self.kept: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the newest column of all rows; returns all columns in use."""
        rows, begin, end = self.cache.rows, self.cache.begin, self.cache.end
        keys, values = self.kept
        keys[:rows, :, end : end + 1] = key_states
        values[:rows, :, end : end + 1] = value_states
        return keys[:rows, :, begin : end + 1], values[:rows, :, begin : end + 1]

    def get_seq_length(self) -> int:
        """Columns in use before the step under way."""
        return self.cache.end - self.cache.begin


class RowCache(Cache):
    """Keys and values of `rows` rows, all ending at column `end`: shorter ones begin later.

    The columns left of `begin` are used by no row. Buffers have places and columns to spare, so that
    a step writes one column and copies nothing.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self.rows = 0
        self.begin = 0
        self.end = 0

    def admit(self, arrived: DynamicCache) -> None:
        """Add the rows of a prefill, padded on the left, behind those that are here."""
        count, _, width, _ = arrived.layers[0].keys.shape
        self._make_room(self.rows + count, width, arrived)
        start, stop = self.rows, self.rows + count
        for layer, new in zip(self.layers, arrived.layers, strict=True):
            for kept, added in zip(layer.kept, (new.keys, new.values), strict=True):
                kept[start:stop, :, self.end - width : self.end] = added
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
            for kept in (kept for layer in self.layers for kept in layer.kept):
                kept[holes, :, self.begin : self.end] = kept[movers, :, self.begin : self.end]
        self.rows = rows
        self.begin = self.end - longest

    def wipe(self, rows: list[int]) -> None:
        """Zero rows that are not finite, which no mask would hide from whoever is put there next."""
        for kept in (kept for layer in self.layers for kept in layer.kept):
            kept[rows] = 0

    def _make_room(self, rows: int, width: int, like: DynamicCache | None = None) -> None:
        """See that there are `rows` places, `width` columns up to `end` and one column behind it."""
        buffers = self.layers[0].kept
        if buffers and rows <= buffers[0].shape[0] and width <= self.end < buffers[0].shape[2]:
            return
        used = self.end - self.begin
        end = max(used, width)
        columns = end + max(_ROOM, end // 4)
        places = 1 << (rows - 1).bit_length()
        for index, layer in enumerate(self.layers):
            old = layer.kept or [like.layers[index].keys, like.layers[index].values]
            fresh = [kept.new_zeros(places, kept.shape[1], columns, kept.shape[3]) for kept in old]
            for kept, buffer in zip(layer.kept, fresh, strict=False):
                buffer[: self.rows, :, end - used : end] = kept[: self.rows, :, self.begin : self.end]
            layer.kept = fresh
        self.begin, self.end = end - used, end
