"""Places of models on GPUs: what a model needs, where it sits, and who takes turns; sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = 2**30
_OVERHEAD = 2 * GIB  # CUDA context, activations and graphs of an engine; what vLLM takes for a model of 8B
_ASLEEP = GIB  # what a sleeping engine keeps: its CUDA context and graphs
_IDLE = "more replicas use them, runner=ray runner.agent.num_gpus=1 'runner.agents={<agent>: {replicas: 2}}'"
_READ = 8192  # tokens that a model without a cache reads at once, more where a text may be longer


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its index among the visible ones, and its memory in bytes."""

    index: int
    name: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that needs a place, an agent's or a reward model.

    `weights` and `overhead` are bytes (weights of 0: not known, which takes a `share`), `cache` bytes a
    token in the KV cache, which must hold `tokens` at least; a model that only reads keeps `reads` bytes a
    token for as long as it does. It is spread over `gpus` GPUs, of the indices `only` where they are given.
    `share` is the fraction of each that it is to have, None for what is left. A model that `sleeps` can take
    turns. `places` are the draws that it decodes at once. `wish` are bytes that it is given beside these
    where that lets all be there at once, and `asleep` those that it keeps while it sleeps.

    `heads` are its attention heads, of which every GPU must have as many; None: not known, or not to be
    spread over more GPUs. Of the `pairs` of keys and values every GPU has as many too, or several have
    one; 0: not known. `settings` are the places in the configuration, as the keys on a command line,
    of what vLLM is told of the model: one for each agent that it serves, none for one that vLLM does not
    run. `device` is the setting that takes it off the GPUs, if there is one.
    """

    name: str
    weights: int
    cache: int = 0
    tokens: int = 0
    reads: int = 0
    gpus: int = 1
    only: tuple[int, ...] | None = None
    share: float | None = None
    overhead: int = _OVERHEAD
    sleeps: bool = True
    quantised: bool = False
    heads: int | None = None
    pairs: int = 0
    settings: tuple[tuple[str, ...], ...] = ()
    device: str | None = None
    places: int = 0
    wish: int = 0
    asleep: int = _ASLEEP

    @property
    def known(self) -> bool:
        """Whether it is known what it takes."""
        return self.weights > 0 or self.share is None

    @property
    def beside(self) -> int:
        """The bytes beside weights and KV cache that it takes of each of its GPUs."""
        return self.overhead + self.reads * max(self.tokens, _READ)

    def need(self, gpu: Gpu) -> int:
        """The least bytes that it takes of each of its GPUs."""
        if self.share is not None:
            return int(self.share * gpu.total)
        return (self.weights + self.cache * self.tokens) // self.gpus + self.beside


@dataclass(frozen=True, slots=True)
class Seat:
    """A model's place: its GPUs, the fraction of each that it gets, and its KV cache in bytes."""

    model: Model
    gpus: tuple[int, ...]
    share: float
    cache: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Models that take turns on the same GPUs, `awake` of them at a time."""

    names: tuple[str, ...]
    awake: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every model goes, by name; `stages` are those that take turns."""

    gpus: Sequence[Gpu]
    seats: Mapping[str, Seat]
    stages: Sequence[Stage]

    def turns(self, name: str) -> Stage | None:
        """The stage of a model that takes turns, None for one that is always there."""
        return next((stage for stage in self.stages if name in stage.names), None)

    def table(self) -> str:
        """The plan as text: a line a model, and which GPUs have none."""
        lines = [["model", "GPU", "weights GiB", "KV cache GiB", "share", ""]]
        for seat in self.seats.values():
            stage = self.turns(seat.model.name)
            lines.append(
                [
                    seat.model.name,
                    "+".join(map(str, seat.gpus)),
                    f"{seat.model.weights / GIB:.1f}" if seat.model.known else "-",
                    f"{seat.cache / GIB:.1f}" if seat.model.cache else "-",
                    f"{seat.share:.2f}",
                    f"by turns, {stage.awake} of {len(stage.names)} awake" if stage else "",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        said = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        taken = {index for seat in self.seats.values() for index in seat.gpus}
        if idle := [str(gpu.index) for gpu in self.gpus if gpu.index not in taken]:
            said.append(f"GPUs without a model: {', '.join(idle)}; {_IDLE}")
        return "\n".join(said)


def gib(size: int) -> str:
    """Bytes as a number of GiB, to be read: small ones with two digits that are not 0."""
    return f"{size / GIB:.2f}" if size >= GIB / 10 else f"{size / GIB:.2g}"
