"""Packs models onto GPUs: arithmetic on sizes in bytes, of GPUs that need not be there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from toa_exp.engines.seats import GIB, Gpu, Model, Plan, Seat, Stage


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
    """Those that sleep take turns on the GPUs they are dealt out to; the others stay.

    What is left of a GPU is for the caches of those that are awake and of those that stay, as much for each.
    """
    staying = [model for model in models if not model.sleeps]
    places, left = _seat(staying, gpus, room, spread=False)
    claimants = Counter(gpu.index for model in staying if _claim(model) for gpu in places[model.name])
    spare = {gpu.index: left[gpu.index] // max(1, claimants[gpu.index]) for gpu in gpus}
    sleepers = [model for model in models if model.sleeps]
    dealt = _dealt(sleepers, gpus, left)
    seats: dict[str, Seat] = {}
    stages = []
    for names in _connected(dealt):
        members = [model for model in sleepers if model.name in names]
        stage, here = _stage(members, dealt, left, residents, claimants)
        spare |= here
        seats |= {model.name: _with_spare(model, dealt[model.name], spare) for model in members}
        stages += [stage] if stage.awake < len(members) else []
    seats |= {model.name: _with_spare(model, places[model.name], spare) for model in staying}
    return Plan(gpus, {model.name: seats[model.name] for model in models}, stages)


def _with_spare(model: Model, places: Sequence[Gpu], spare: Mapping[int, int]) -> Seat:
    """A seat with what is to spare for each cache of a GPU."""
    claims = bool(_claim(model))
    return _seated(model, {gpu: model.need(gpu) + claims * spare[gpu.index] for gpu in places})


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
    claimants: Mapping[int, int],
) -> tuple[Stage, dict[int, int]]:
    """As many awake as fit whichever they are, or as many as asked for; and what each cache is to have.

    `claimants` are, by GPU, those that stay there and have a cache as well.
    """
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
            spare[index] = (left[index] - asleep - sum(needs[-awake:])) // (count + claimants[index])
        if min(spare.values()) >= 0:
            return Stage(tuple(model.name for model in members), awake), spare
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
