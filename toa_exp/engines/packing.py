"""Packs models onto GPUs: arithmetic on sizes in bytes, of GPUs that need not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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

    `weights` and `overhead` are bytes, `cache` bytes a token in the KV cache, which must hold `tokens`
    at least; a model that only reads keeps `reads` bytes a token for as long as it does. It is spread
    over `gpus` GPUs, of the indices `only` where they are given. `share` is the fraction of each that it
    is to have, None for what is left. A model that `sleeps` can take turns. `places` are the draws that
    it decodes at once. `wish` are bytes that it is given beside these where that lets all be there at once,
    and `asleep` those that it keeps while it sleeps.

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
                    f"{seat.model.weights / GIB:.1f}",
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


class NoRoom(Exception):
    """`model` does not fit beside those that were seated before it."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.name)
        self.model = model


def pack(models: Sequence[Model], gpus: Sequence[Gpu], utilization: float, residents: int | None) -> Plan:
    """Seat models, the largest first, and share out what is left for their KV caches.

    Of each GPU the fraction `utilization` is used, less where others use it. Where not all fit at
    once, those that sleep take turns; `residents` sets how many of a GPU's are awake at once, None as
    many as fit. Raises NoRoom.
    """
    room = {gpu.index: min(int(gpu.total * utilization), gpu.free) for gpu in gpus}
    several = sum(model.sleeps for model in models)
    if residents is None or residents >= several:
        try:
            return _together(models if residents is not None else _wished(models), gpus, room)
        except NoRoom:
            if residents is not None or not several:
                raise
    return _by_turns(models, gpus, room, residents)


def _wished(models: Sequence[Model]) -> list[Model]:
    return [replace(model, overhead=model.overhead + model.wish) if model.wish else model for model in models]


def _together(models: Sequence[Model], gpus: Sequence[Gpu], room: Mapping[int, int]) -> Plan:
    """All models at once: spread out where that fits, else packed tightly."""
    try:
        places, left = _seat(models, gpus, room, spread=True)
    except NoRoom:
        places, left = _seat(models, gpus, room, spread=False)
    return Plan(gpus, _shared_out(models, gpus, places, left), [])


def _seat(
    models: Sequence[Model], gpus: Sequence[Gpu], room: Mapping[int, int], *, spread: bool
) -> tuple[dict[str, list[Gpu]], dict[int, int]]:
    """GPUs of every model, and the bytes left on each; `spread` takes the emptiest, else the fullest."""
    left, places = dict(room), {}
    for model in sorted(models, key=_largest):
        fitting = [gpu for gpu in _allowed(model, gpus) if model.need(gpu) <= left[gpu.index]]
        fitting.sort(key=lambda gpu: -left[gpu.index] if spread else left[gpu.index])
        places[model.name] = _alike(model, fitting)
        for gpu in places[model.name]:
            left[gpu.index] -= model.need(gpu)
    return places, left


def _alike(model: Model, fitting: Sequence[Gpu]) -> list[Gpu]:
    """The first of `fitting` that are enough for a model and of one size, as its parts are."""
    for first in fitting:
        group = [gpu for gpu in fitting if round(gpu.total / GIB) == round(first.total / GIB)]
        if len(group) >= model.gpus:
            return sorted(group[: model.gpus], key=lambda gpu: gpu.index)
    raise NoRoom(model)


def _shared_out(
    models: Sequence[Model],
    gpus: Sequence[Gpu],
    places: Mapping[str, Sequence[Gpu]],
    left: Mapping[int, int],
) -> dict[str, Seat]:
    """Seats, with the bytes left on each GPU going to the KV caches: as many tokens for each."""
    claims = {gpu.index: 0 for gpu in gpus}
    for model in models:
        for gpu in places[model.name]:
            claims[gpu.index] += _claim(model)
    seats = {}
    for model in models:
        parts = {}
        for gpu in places[model.name]:
            claim = claims[gpu.index]
            parts[gpu] = model.need(gpu) + (left[gpu.index] * _claim(model) // claim if claim else 0)
        seats[model.name] = _seated(model, parts)
    return seats


def _by_turns(
    models: Sequence[Model], gpus: Sequence[Gpu], room: Mapping[int, int], residents: int | None
) -> Plan:
    """Those that sleep take turns on the GPUs they are dealt out to; the others stay."""
    staying = [model for model in models if not model.sleeps]
    places, left = _seat(staying, gpus, room, spread=False)
    seats = _shared_out(staying, gpus, places, {gpu.index: 0 for gpu in gpus})
    sleepers = [model for model in models if model.sleeps]
    dealt = _dealt(sleepers, gpus, left)
    stages = []
    for names in _connected(dealt):
        members = [model for model in sleepers if model.name in names]
        stage, seated = _stage(members, dealt, left, residents)
        seats |= seated
        stages += [stage] if stage.awake < len(members) else []
    return Plan(gpus, {model.name: seats[model.name] for model in models}, stages)


def _dealt(
    sleepers: Sequence[Model], gpus: Sequence[Gpu], left: Mapping[int, int]
) -> dict[str, Sequence[Gpu]]:
    """GPUs of models that take turns: the largest first, to where the least is dealt so far."""
    dealt = {gpu.index: 0 for gpu in gpus}
    places: dict[str, Sequence[Gpu]] = {}
    for model in sorted(sleepers, key=_largest):
        fitting = [gpu for gpu in _allowed(model, gpus) if model.need(gpu) <= left[gpu.index]]
        fitting.sort(key=lambda gpu: (dealt[gpu.index], -left[gpu.index]))
        places[model.name] = _alike(model, fitting)
        for gpu in places[model.name]:
            dealt[gpu.index] += model.need(gpu)
    return places


def _connected(places: Mapping[str, Sequence[Gpu]]) -> list[set[str]]:
    """The models by the GPUs that they share, directly or through others."""
    groups: list[tuple[set[str], set[int]]] = []
    for name, chosen in places.items():
        names, indices = {name}, {gpu.index for gpu in chosen}
        for group in [group for group in groups if group[1] & indices]:
            names, indices = names | group[0], indices | group[1]
            groups.remove(group)
        groups.append((names, indices))
    return [names for names, _ in groups]


def _stage(
    members: Sequence[Model],
    places: Mapping[str, Sequence[Gpu]],
    left: Mapping[int, int],
    residents: int | None,
) -> tuple[Stage, dict[str, Seat]]:
    """As many awake as fit whichever they are, or as many as asked for."""
    wanted = [min(residents, len(members))] if residents is not None else range(len(members), 0, -1)
    gpus = {gpu.index: gpu for model in members for gpu in places[model.name]}
    for awake in wanted:
        spare = {}
        for index, gpu in gpus.items():
            here = [model for model in members if gpu in places[model.name]]
            wished = residents is None and awake > 1
            needs = sorted(model.need(gpu) + (model.wish if wished else 0) for model in here)
            asleep = max(0, len(needs) - awake) * max(model.asleep for model in here)
            count = min(awake, len(needs))
            spare[index] = (left[index] - asleep - sum(needs[-awake:])) // count
        if min(spare.values()) >= 0:
            seats = {
                model.name: _seated(
                    model,
                    {
                        gpu: model.need(gpu) + (spare[gpu.index] if _claim(model) else 0)
                        for gpu in places[model.name]
                    },
                )
                for model in members
            }
            return Stage(tuple(model.name for model in members), awake), seats
    raise NoRoom(max(members, key=lambda model: model.weights))


def _seated(model: Model, parts: Mapping[Gpu, int]) -> Seat:
    """A seat with `parts` bytes of each GPU; an engine takes the same fraction of all of its GPUs."""
    share = min(part / gpu.total for gpu, part in parts.items())
    cache = sum(int(share * gpu.total) for gpu in parts) - model.gpus * model.beside - model.weights
    return Seat(model, tuple(gpu.index for gpu in parts), share, max(cache, 0) if model.cache else 0)


def _claim(model: Model) -> int:
    """What a model's part of the bytes left is in proportion to."""
    return 0 if model.share is not None else model.cache


def _largest(model: Model) -> tuple[int, int]:
    return -model.gpus, -(model.weights + model.cache * model.tokens) // model.gpus


def _allowed(model: Model, gpus: Sequence[Gpu]) -> list[Gpu]:
    return [gpu for gpu in gpus if model.only is None or gpu.index in model.only]
