"""Training: examples, batches of similar length, and the Muon optimiser.

Muon (Keller Jordan et al. 2024, github.com/KellerJordan/Muon) orthogonalises the momentum of each
weight matrix; embeddings, norms and heads take AdamW.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toa_exp.errors import choose
from toa_exp.lab.network import Network

_POOL = 8  # batches drawn at once, so that texts of a like length meet in a batch


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a prompt and its answer, which begins at `start`; `labels`, one a token, for rewards."""

    ids: list[int]
    start: int
    labels: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: optimiser steps of about `tokens` tokens, and learning rates."""

    steps: int
    tokens: int = 6144
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    warmup: int = 20
    decay: float = 0.5

    def scaled(self, effort: float) -> Schedule:
        """The same with `effort` times as many steps, but for one at least."""
        return replace(self, steps=max(1, round(effort * self.steps)))

    def factor(self, step: int) -> float:
        """The share of the learning rate at a step: constant, then falling to 0 over the last `decay`."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, left)


Loss = Callable[[Any, Tensor, list[Example]], Tensor]
"""From the network, the padded token ids and the examples to the loss."""


class Muon:
    """Muon for the matrices of the layers and AdamW for everything else."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "layers." in name]
        chosen = {id(p) for p in matrices}
        self._others = torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen],
            lr=schedule.other_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        shapes = sorted({tuple(p.shape) for p in matrices})
        self._groups = [[p for p in matrices if tuple(p.shape) == shape] for shape in shapes]
        self._momentum = [torch.zeros(len(group), *group[0].shape) for group in self._groups]
        self._schedule = schedule

    def step(self, number: int) -> None:
        """Update all parameters from their gradients and clear these."""
        factor = self._schedule.factor(number)
        for options in self._others.param_groups:
            options["lr"] = self._schedule.other_rate * factor
        self._others.step()
        self._others.zero_grad()
        for group, momentum in zip(self._groups, self._momentum, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95))
            rate = self._schedule.matrix_rate * factor * max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for p, direction in zip(group, update, strict=True):
                p.data.mul_(1.0 - 0.01 * rate).add_(direction, alpha=-rate)
                p.grad = None


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, about, by five quintic Newton-Schulz steps."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    directions: Tensor = x.transpose(1, 2) if tall else x
    return directions


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; "auto" is bfloat16 where `device` has instructions for it.

    A CPU without them computes bfloat16 some ten times as slowly as float32. Raises BadInput.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in known:
        return known[name]
    if name != "auto":
        raise choose("dtype", name, ["auto", *known])
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = torch.cpu.get_capabilities()
        fast = cpu.get("avx512_bf16", False) or cpu.get("bf16", False)  # of x86 and of ARM
    return torch.bfloat16 if fast else torch.float32


def language_loss(network: Network, ids: Tensor, batch: list[Example]) -> Tensor:
    """Cross-entropy of the answers' tokens."""
    hidden = network(ids)
    rows = [r for r, e in enumerate(batch) for _ in range(e.start, len(e.ids))]
    places = [p - 1 for e in batch for p in range(e.start, len(e.ids))]
    targets = torch.tensor([token for e in batch for token in e.ids[e.start :]])
    return F.cross_entropy(network.logits(hidden[rows, places]).float(), targets)


class Remembering(nn.Module):
    """A network that has to tell, from its last state, the token that it has just read.

    With the output head tied to the embedding a language model forgets that token on its way to the
    next one; a critic on top of it needs both, to compare what was predicted with what came.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.memory = nn.Linear(network.shape.width, network.shape.vocabulary)


def remembering_loss(model: Remembering, ids: Tensor, batch: list[Example]) -> Tensor:
    """The language loss, and a fifth of the cross-entropy of the token read at each of its places."""
    rows = [r for r, e in enumerate(batch) for _ in range(e.start, len(e.ids))]
    places = [p - 1 for e in batch for p in range(e.start, len(e.ids))]
    states = model.network(ids)[rows, places]
    following = torch.tensor([token for e in batch for token in e.ids[e.start :]])
    read = torch.tensor([token for e in batch for token in e.ids[e.start - 1 : -1]])
    next_loss = F.cross_entropy(model.network.logits(states).float(), following)
    return next_loss + 0.2 * F.cross_entropy(model.memory(states).float(), read)


def batches(examples: Iterator[Example], tokens: int, rng: Random) -> Iterator[list[Example]]:
    """Batches of about `tokens` tokens, without end, of examples of similar length."""
    while True:
        pool: list[Example] = []
        size = 0
        for example in examples:
            pool.append(example)
            size += len(example.ids)
            if size >= _POOL * tokens:
                break
        pool.sort(key=lambda e: len(e.ids))
        cut: list[list[Example]] = [[]]
        for example in pool:
            if (len(cut[-1]) + 1) * len(example.ids) > tokens and cut[-1]:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        yield from cut


def train(
    network: nn.Module,
    examples: Iterator[Example],
    schedule: Schedule,
    seed: str,
    loss_of: Loss = language_loss,
    done: Callable[[int, str], object] = lambda steps, state: None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Train in place, with matrix products of `dtype`.

    `done` is told of every step, with the loss and tokens/s of about the last 100.
    """
    optimizer = Muon(network, schedule)
    network.train()
    clock, seen, losses, count = time.perf_counter(), 0, 0.0, 0
    for number, batch in enumerate(islice(batches(examples, schedule.tokens, Random(seed)), schedule.steps)):
        width = math.ceil(max(len(e.ids) for e in batch) / 8) * 8
        ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in batch])
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = loss_of(network, ids, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(number)
        if number % 100 == 0:
            losses, count = 0.0, 0
        losses, count = losses + loss.item(), count + 1
        seen += sum(len(e.ids) for e in batch)
        speed = seen / (time.perf_counter() - clock)
        done(1, f"loss {losses / count:.4f}, {speed:.0f} tokens/s")
    network.eval()
