"""Scores of translations by a COMET model, in batches, on a CPU or one GPU or several."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Required, TypedDict

from toa_exp.batching import Batcher
from toa_exp.comet.checkpoint import Checkpoint
from toa_exp.comet.environment import gpus_of, python_of, version_of
from toa_exp.comet.process import Recipe, Row, Sentence, Worker
from toa_exp.engines.gpus import Ground
from toa_exp.errors import BadInput, Permanent, choose

log = logging.getLogger(__name__)

Given = tuple[str, str, str | None]
"""Source, translation, and reference where there is one."""
DTYPES = {"float32": 4, "float64": 8}
_DECIMALS = 6  # of a score: beyond them batching shows, in float64 too since COMET pools in float32
_STARTUP = 1800.0  # seconds to load a model; the largest has 43 GB


class Fields(TypedDict, total=False):
    """The fields of `Settings`, as metric and reward take them among their keywords."""

    model: Required[str]
    revision: str | None
    encoder: str | None
    python: str | None
    devices: str | Sequence[int]
    dtype: str
    max_batch: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Settings:
    """Which model, where and how it runs.

    `model` is a hub id, of `revision`, a folder of hparams.yaml and checkpoints/model.ckpt, or the
    .ckpt. `encoder` is the hub id or folder of the encoder's configuration and tokenizer, None for the one
    that the model names. `python` is the interpreter of the environment that has unbabel-comet
    (`comet.environment`). `devices` is auto (all GPUs, else the CPU), cpu, or indices of GPUs, each
    of which has the whole model. `max_batch` sentences are read at once, within `timeout` seconds.
    """

    model: str
    revision: str | None = None
    encoder: str | None = None
    python: str | None = None
    devices: str | Sequence[int] = "auto"
    dtype: str = "float32"
    max_batch: int = 16
    timeout: float = 600.0

    def check(self, whose: str) -> None:
        """Raise BadInput where no model could be run so."""
        if isinstance(self.devices, str) and self.devices not in ("auto", "cpu"):
            raise choose(f"{whose}.devices (or a list of GPUs, such as [0,1])", self.devices, ["auto", "cpu"])
        if not isinstance(self.devices, str) and (
            not self.devices or any(type(index) is not int or index < 0 for index in self.devices)
        ):
            raise BadInput(f"{whose}.devices={self.devices}: give auto, cpu, or GPUs such as [0,1]")
        if self.dtype not in DTYPES:
            raise choose(f"{whose}.dtype", self.dtype, list(DTYPES))
        if self.max_batch < 1 or self.timeout <= 0:
            raise BadInput(f"{whose}.max_batch is 1 or more, {whose}.timeout seconds above 0")


class Scorer:
    """Scores rows in the order asked, a worker a device; what waits goes to the least busy, in batches.

    `whose` is the configuration's key: metric or reward. Raises BadInput where the environment, the
    checkpoint or its encoder is not there. What is longer than the model's window is cut off there, as
    COMET does; that is logged once.
    """

    def __init__(self, settings: Settings, whose: str) -> None:
        settings.check(whose)
        self._settings, self._whose = settings, whose
        self._python = python_of(settings.python, whose)
        self._version = version_of(self._python, whose)
        self.checkpoint = Checkpoint(settings.model, settings.revision, settings.encoder, whose)
        self._ground: Ground | None = None
        self._seat = whose
        self._lanes: list[_Lane] = []
        self._opening = asyncio.Lock()
        self._cut = False

    def fingerprint(self) -> dict[str, Any]:
        """What decides scores: the model, unbabel-comet's version, and the number format."""
        version = {"unbabel-comet": self._version}
        return {**self.checkpoint.fingerprint(), **version, "dtype": self._settings.dtype}

    def join(self, ground: Ground, seat: str) -> None:
        """Be on the GPU that the plan of `ground` gives to `seat`, where it has one."""
        self._ground, self._seat = ground, seat

    async def score(self, given: Given) -> Sentence:
        """The score of one of many that are asked for at once, rounded; batches are of those that wait.

        Raises Permanent for a score that is not finite, else what `Worker.ask` raises.
        """
        (sentence,) = await self._ask([given], self._settings.max_batch)
        return sentence

    async def score_all(self, given: Sequence[Given]) -> list[Sentence]:
        """The scores of all; batches are of like length, and the same wherever and whenever they are read.

        The first error ends it. Raises what `score` does.
        """
        size = self._settings.max_batch
        order = sorted(range(len(given)), key=lambda i: sum(len(part or "") for part in given[i]))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask([given[i] for i in chunk], 1)) for chunk in chunks]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        found = [sentence for one in asked for sentence in one.result()]
        return [sentence for _, sentence in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    async def close(self) -> None:
        """End the workers."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            await lane.close()

    async def _ask(self, given: Sequence[Given], together: int) -> list[Sentence]:
        """The scores of what is read in one batch, with up to `together` such requests."""
        rows = [self._row(*one) for one in given]
        async with self._opening:
            if not self._lanes:
                self._lanes = await asyncio.to_thread(self._open, together)
        sentences = await min(self._lanes, key=lambda lane: lane.under_way).score(rows)
        return [self._checked(sentence, one[1]) for sentence, one in zip(sentences, given, strict=True)]

    def _row(self, source: str, text: str, reference: str | None) -> Row:
        row = {"src": _clean(source), "mt": _clean(text)}
        if self.checkpoint.takes_reference and reference is not None:
            row["ref"] = _clean(reference)
        return row

    def _checked(self, sentence: Sentence, text: str) -> Sentence:
        if not math.isfinite(sentence.score):
            raise Permanent(
                f"{self._whose}: {self._settings.model!r} gave {sentence.score} for a translation of "
                f"{len(text)} characters. Check its weights, or try {self._whose}.dtype=float64"
            )
        if sentence.full and not self._cut:
            self._cut = True
            log.warning(
                "%s: a sentence of %d characters fills COMET's window: what is beyond it, here "
                "and in any other as long, has no part in the score",
                self._whose,
                len(text),
            )
        return replace(sentence, score=round(sentence.score, _DECIMALS))

    def _open(self, together: int) -> list[_Lane]:
        """A lane for each device; downloads what is not here."""
        spec = {
            "checkpoint": str(self.checkpoint.weights()),
            "kind": self.checkpoint.kind,
            "encoder": str(self.checkpoint.encoder()),
            "dtype": self._settings.dtype,
        }
        plan = self._ground.plan() if self._ground is not None else None
        placed = plan.seats[self._seat].gpus[:1] if plan is not None else ()
        return [
            _Lane(self._recipe({**spec, "device": device}), together, self._ground, placed)
            for device in self._devices(placed)
        ]

    def _recipe(self, spec: Mapping[str, Any]) -> Recipe:
        return Recipe(self._whose, self._python, spec, _STARTUP, self._settings.timeout)

    def _devices(self, placed: Sequence[int]) -> list[str]:
        devices = self._settings.devices
        if devices == "cpu":
            return ["cpu"]
        if placed:
            return [f"cuda:{index}" for index in placed]
        here = gpus_of(self._python)
        if devices == "auto":
            return [f"cuda:{index}" for index in range(here)] or ["cpu"]
        if missing := [index for index in devices if int(index) >= here]:
            raise BadInput(
                f"{self._whose}.devices={list(devices)} names {missing}, and the torch of {self._python} "
                f"sees {here} GPUs; indices start at 0 and count what CUDA_VISIBLE_DEVICES leaves"
            )
        return [f"cuda:{index}" for index in devices]


class _Lane:
    """A worker and the requests that wait for it, of which `together` are read at once."""

    def __init__(self, recipe: Recipe, together: int, ground: Ground | None, gpus: Sequence[int]) -> None:
        self._worker = Worker(recipe)
        self._ground, self._gpus = ground, gpus
        self._loaded = False
        self._batcher = Batcher(self._ask, together, order=_length)
        self.under_way = 0

    async def score(self, rows: list[Row]) -> list[Sentence]:
        self.under_way += 1
        try:
            return await self._batcher.submit(rows)
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        self._worker.end()
        await self._batcher.close()
        self._worker.close()

    def _ask(self, requests: list[list[Row]]) -> list[list[Sentence]]:
        alone = self._ground is not None and self._gpus and not self._loaded
        with self._ground.loading(self._gpus) if self._ground and alone else nullcontext():
            sentences = iter(self._worker.ask([row for rows in requests for row in rows]))
        self._loaded = True
        return [[next(sentences) for _ in rows] for rows in requests]


def _length(rows: list[Row]) -> int:
    return sum(len(text) for row in rows for text in row.values())


def _clean(text: str) -> str:
    """The text as COMET's command line takes it: no space around it, and no lone surrogates."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")
