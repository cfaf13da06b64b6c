"""Decoding with continuous batching: rows join and leave a batch between any two steps."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from toa_exp.engines.attention import attend_by_group
from toa_exp.engines.cache import RowCache
from toa_exp.errors import BadInput

_PREFILL_TOKENS = 8192  # a prompt or several: a larger prefill gains nothing and takes memory
_REFILL = 8  # a full batch takes newcomers once an eighth of its places is free


@dataclass(slots=True, eq=False)
class Row:
    """A text to be written: after `prompt`, `limit` tokens at most.

    `seed` decides the samples, by a number a token, so that a row's text is its own wherever and with
    whomever it is decoded. `broken` says that the model gave something other than probabilities.
    """

    prompt: list[int]
    limit: int
    temperature: float
    top_p: float
    seed: int
    tokens: list[int] = field(init=False)
    noise: Random = field(init=False)
    seconds: float = 0.0
    broken: bool = False

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Write the text from its first token on, the same as before."""
        self.tokens, self.noise, self.broken = [], Random(self.seed), False

    @property
    def cached(self) -> int:
        """Tokens in the cache: all but the one written last, which the next step reads."""
        return len(self.prompt) + len(self.tokens) - 1


class Decoder:
    """Decodes rows with one causal language model, up to `max_batch` at once.

    `stop` are the tokens that end a text. No more rows run at once than `max_batch_tokens` can hold,
    each counted with the longest prompt and limit among them; a row too long for that runs alone.
    Rows end as soon as they are done, and newcomers are taken in once an eighth of the places is free.
    In float32 a text does not depend on its batch; with fewer bits it may, through rounding.
    """

    def __init__(self, model: Any, stop: frozenset[int], *, max_batch: int, max_batch_tokens: int) -> None:
        _check_layers(model.config)
        attend_by_group(model)
        self.rows: list[Row] = []
        self.waiting: list[Row] = []
        self._done: list[Row] = []
        self._model = model
        self._stop = stop
        self._max_batch = max_batch
        self._max_batch_tokens = max_batch_tokens
        self._takes = set(inspect.signature(model.forward).parameters)
        self._cache: RowCache | None = None

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._model.device

    @property
    def demand(self) -> int:
        """Rows that the next step can be about; 0 where there is nothing to do."""
        return min(len(self.rows) + len(self.waiting), self._max_batch)

    def add(self, row: Row) -> None:
        """Queue a row."""
        self.waiting.append(row)

    def clear(self) -> list[Row]:
        """Drop the rows of the batch, after a fault in it, and return them; those waiting stay."""
        rows, self.rows, self._cache = self.rows, [], None
        return rows

    def retreat(self) -> None:
        """Begin the rows of the batch anew, and hold half as many tokens from now on."""
        rows = self.clear()
        held = len(rows) * max(len(row.prompt) + row.limit for row in rows)
        self._max_batch_tokens = min(self._max_batch_tokens, held) // 2
        for row in rows:
            row.begin()
        self.waiting = [*rows, *self.waiting]

    def collect(self) -> list[Row]:
        """The rows that are done and were not returned: after a fault, those of the step before it."""
        done, self._done = self._done, []
        return done

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Take in newcomers where it is time to, write one token a row; returns the rows done."""
        free = self._max_batch - len(self.rows)
        if not self.rows or free >= max(1, self._max_batch // _REFILL):
            while group := self._newcomers():
                self._prefill(group)
        if self.rows:
            self._decode()
        return self.collect()

    def _newcomers(self) -> list[Row]:
        """The row that waited longest and those nearest to it in length, as many as there is room for."""
        if not self.waiting:
            return []
        first = len(self.waiting[0].prompt)
        nearest = sorted(self.waiting, key=lambda row: abs(len(row.prompt) - first))
        reach = max((len(row.prompt) + row.limit for row in self.rows), default=0)
        group: list[Row] = []
        width = 0
        for row in nearest[: self._max_batch - len(self.rows)]:
            reach = max(reach, len(row.prompt) + row.limit)
            width = max(width, len(row.prompt))
            count = len(self.rows) + len(group) + 1
            if count > 1 and count * reach > self._max_batch_tokens:
                break
            if group and (len(group) + 1) * width > _PREFILL_TOKENS:
                break
            group.append(row)
        chosen = set(group)
        self.waiting = [row for row in self.waiting if row not in chosen]
        return group

    def _prefill(self, group: list[Row]) -> None:
        """Read the prompts of newcomers and write their first tokens."""
        started = time.perf_counter()
        self.rows += group
        width = max(len(row.prompt) for row in group)
        ids = [[0] * (width - len(row.prompt)) + row.prompt for row in group]
        mask = self._mask([len(row.prompt) for row in group], width)
        cache = DynamicCache()
        logits = self._forward(self._tensor(ids), mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        if cache.get_seq_length() != width:
            raise BadInput(f"{type(self._model).__name__} keeps no key-value cache; choose another engine")
        layers: list[Any] = cache.layers
        states = [[layer.keys, layer.values] for layer in layers]
        if self._cache is None:
            self._cache = RowCache(states)
        self._cache.admit(states)
        self._write(group, logits, started)
        self._leave()

    def _decode(self) -> None:
        """Write one token in every row."""
        started = time.perf_counter()
        assert self._cache is not None
        ids = self._tensor([[row.tokens[-1]] for row in self.rows])
        lengths = [row.cached for row in self.rows]
        mask = self._mask([length + 1 for length in lengths], self._cache.end - self._cache.begin + 1)
        logits = self._forward(ids, mask, self._tensor(lengths)[:, None], self._cache)
        self._cache.advance()
        self._write(self.rows, logits, started)
        self._leave()

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """The logits behind the last column, [rows, vocabulary]."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        given = {name: value for name, value in optional.items() if name in self._takes}
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _write(self, rows: list[Row], logits: torch.Tensor, started: float) -> None:
        noise = torch.tensor([row.noise.random() for row in rows], dtype=torch.float64)
        # torch's default format is not relied on: who loads a model changes it for all threads.
        temperature = torch.tensor([row.temperature for row in rows], dtype=torch.float32)
        top_p = torch.tensor([row.top_p for row in rows], dtype=torch.float32)
        tokens, valid = choose_tokens(logits, temperature, top_p, noise)
        for row, token, fine in zip(rows, tokens.tolist(), valid.tolist(), strict=True):
            row.tokens.append(token)
            row.broken = not fine
        share = (time.perf_counter() - started) / len(rows)
        for row in rows:
            row.seconds += share

    def _leave(self) -> None:
        """Take the rows that are done out of the batch; they are in `_done` whatever the cache says to it."""
        assert self._cache is not None
        rows = self.rows
        gone = [place for place, row in enumerate(rows) if self._ends(row)]
        if not gone:
            return
        if len(gone) == len(rows):
            self._done += self.clear()
            return
        self._done += [rows[place] for place in gone]
        broken = [place for place in gone if rows[place].broken]
        # The last rows move to the places that fall empty, so that few rows are copied.
        left = len(rows) - len(gone)
        holes = [place for place in gone if place < left]
        movers = sorted(set(range(left, len(rows))).difference(gone))
        for hole, mover in zip(holes, movers, strict=True):
            rows[hole] = rows[mover]
        del rows[left:]
        if broken:
            self._cache.wipe(broken)
        self._cache.leave(holes, movers, left, max(row.cached for row in rows))

    def _ends(self, row: Row) -> bool:
        return row.tokens[-1] in self._stop or len(row.tokens) >= row.limit or row.broken

    def _mask(self, lengths: list[int], width: int) -> torch.Tensor:
        """1 in the last `lengths` columns of each row, [rows, width]."""
        columns = torch.arange(width, device=self._model.device)
        return (columns >= width - self._tensor(lengths)[:, None]).long()

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self._model.device)


def choose_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, and whether the row's logits were probabilities at all.

    `logits` is [rows, vocabulary], the others [rows], `noise` uniform in [0, 1). A row at temperature
    0 takes its likeliest token, every other the first at which its cumulated probability exceeds the
    noise. Of the tokens in falling order those up to a probability of `top_p` are kept.
    """
    device = logits.device
    temperature, top_p, noise = temperature.to(device), top_p.to(device), noise.to(device)
    greedy = temperature == 0
    logits = logits.float()
    probabilities = (logits / torch.where(greedy, 1.0, temperature)[:, None]).softmax(-1)
    valid = probabilities.sum(-1).isfinite()
    if bool((top_p < 1).any()):
        probabilities = nucleus(probabilities, top_p)
    cumulated = probabilities.double().cumsum(-1)
    sampled = torch.searchsorted(cumulated, noise[:, None] * cumulated[:, -1:], right=True).squeeze(1)
    sampled = sampled.clamp(max=logits.shape[-1] - 1)
    return torch.where(greedy, logits.argmax(-1), sampled), valid


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The probabilities [rows, vocabulary] of the fewest likeliest tokens that reach `top_p` [rows], else 0.

    Nucleus sampling (Holtzman et al. 2020): the token that crosses `top_p` is kept, and 1 or more keeps
    all. The result is not scaled to sum to 1. It stays in the vocabulary's order, in which it is summed
    up: the order of equally likely tokens may be decided by rounding, and would let the batch decide
    the token.
    """
    falling, order = probabilities.sort(descending=True, stable=True)
    limit = torch.where(top_p < 1, top_p, torch.inf)[:, None]
    outside = falling.cumsum(-1) - falling >= limit
    return probabilities.masked_fill(outside.scatter(1, order, outside), 0.0)


def _check_layers(config: Any) -> None:
    """Raise BadInput for a model that keeps more than keys and values, which rows cannot carry along."""
    for layer in DynamicCache(config=config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise BadInput(
                f"models of type {config.model_type} have recurrent layers ({type(layer).__name__}), which "
                f"engine=transformers cannot batch; choose another engine"
            )
