"""The GPUs that this process sees, and one plan for all that it runs on them."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from toa_exp.engines.placement import plan
from toa_exp.engines.seats import Gpu, Model, Plan, Stage
from toa_exp.errors import BadInput, Unavailable

log = logging.getLogger(__name__)

_PATIENCE = 300.0  # seconds; many GPUs without persistence mode take long to answer
# In a process of its own: asking for free memory starts CUDA, after which no child can be forked.
_ASK = """
import json, torch
print(json.dumps([
    [torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in range(torch.cuda.device_count())
]))
"""


def visible_gpus() -> list[Gpu]:
    """The GPUs that torch sees, with CUDA_VISIBLE_DEVICES applied; none on a machine without.

    Raises Unavailable where they do not answer.
    """
    import torch

    if not torch.cuda.device_count():
        return []
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
        rows = json.loads(asked.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise Unavailable(f"the GPUs cannot be asked for their memory {said}; try nvidia-smi") from error
    return [Gpu(index, name, total, free) for index, (name, free, total) in enumerate(rows)]


class Ground:
    """The GPUs that engines and reward model of a run share, and who has which part of them.

    `gpus` is "auto" for all that are visible, or the indices of some of these. Of each the fraction
    `utilization` is used. `residents` models of a GPU are in memory at once, None for as many as fit.
    Those who want a place are added, with their own terms; the plan is made, and printed, when the first
    of them loads.
    `concurrency` is how many problems are open at a time, None where these are all there are: that
    they keep the models busy is looked at then.
    """

    def __init__(
        self, gpus: str | Sequence[int] = "auto", utilization: float = 0.9, residents: int | None = None
    ) -> None:
        self.terms = (gpus, utilization, residents)
        self.concurrency: int | None = None
        self._wanted: list[Callable[[], Sequence[Model]]] = []
        self._terms: dict[str, dict[str, Any]] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._made: Plan | None = None
        self._settled = False

    def add(self, models: Callable[[], Sequence[Model]], whose: str = "", **terms: Any) -> None:
        """Plan for what `models` returns; it is called when the plan is made.

        `terms` are those among gpus, gpu_memory_utilization and residents that `whose` engine has a
        setting for, in which all must agree.
        """
        self._wanted.append(models)
        for name, value in terms.items():
            self._terms.setdefault(name, {})[whose] = value

    def plan(self, gpus: Callable[[], Sequence[Gpu]] | None = None) -> Plan | None:
        """The plan, made once for `gpus`, or the visible ones; None where there is none.

        Raises BadInput where the models do not fit.
        """
        with self._lock:
            if not self._settled:
                there = (gpus or visible_gpus)()
                if there:
                    self._check_terms()
                gpus_of_all, utilization, residents = self._agreed()
                if chosen := _chosen(there, gpus_of_all):
                    wanted = [list(models()) for models in self._wanted]
                    models, chosen = _own([model for of_one in wanted for model in of_one], chosen, there)
                    made = plan(models, chosen, utilization=utilization, residents=residents)
                    if _mixed(made, wanted):  # a smaller cache than wished for is better
                        models = [replace(model, wish=0) for model in models]
                        made = plan(models, chosen, utilization=utilization, residents=residents)
                    _check_stages(made, wanted)
                    self._made = made
                    said = f"plan for {len(chosen)} GPUs ({chosen[0].name}):\n{self._made.table()}"
                    log.info("%s", said)
                    tqdm.write(said, file=sys.stderr)  # above a bar; logs of this level are in the file only
                    self._check_concurrency(self._made)
                self._settled = True
            return self._made

    @contextlib.contextmanager
    def loading(self, gpus: Sequence[int]) -> Iterator[None]:
        """Keep others from loading on the same GPUs (none: the CPU), since engines measure what is free."""
        with self._lock:
            locks = [self._locks.setdefault(index, threading.Lock()) for index in sorted(gpus) or [-1]]
        with contextlib.ExitStack() as held:
            for lock in locks:
                held.enter_context(lock)
            yield

    def _check_concurrency(self, plan: Plan) -> None:
        """Warn where the models that are awake can decode more draws at once than problems are open."""
        alone = [Stage((name,), 1) for name in plan.seats if plan.turns(name) is None]
        places = 0
        for stage in [*plan.stages, *alone]:
            places += sum(sorted(plan.seats[name].model.places for name in stage.names)[-stage.awake :])
        if self.concurrency is not None and self.concurrency < places:
            log.warning(
                "the GPUs may be short of work: the engines decode up to %d draws at once, most searches ask "
                "for about one at a time, and concurrency=%d of them are open; give concurrency=%d or more",
                places,
                self.concurrency,
                places,
            )

    def _check_terms(self) -> None:
        """Raise BadInput where two that share the GPUs want different things of them."""
        for name, given in self._terms.items():
            values = list(given.values())
            if any(value != values[0] for value in values):
                each = " and ".join(f"{'auto' if v is None else v} for {whose}" for whose, v in given.items())
                raise BadInput(
                    f"engines on the same GPUs must agree in {name}, which is {each}; give all of them the "
                    f"same: engine.{name}=<value> engines.<name>.{name}=<value> (of a judge "
                    f"reward.engine.{name}=<value>)"
                )

    def _agreed(self) -> tuple[str | Sequence[int], float, int | None]:
        """The terms of those who were added, or else this ground's own."""

        def one(name: str, own: Any) -> Any:
            return next(iter(self._terms.get(name, {}).values()), own)

        gpus, utilization, residents = self.terms
        return one("gpus", gpus), one("gpu_memory_utilization", utilization), one("residents", residents)


def _chosen(gpus: Sequence[Gpu], wanted: str | Sequence[int]) -> list[Gpu]:
    if wanted == "auto":
        return list(gpus)
    if isinstance(wanted, str):
        raise BadInput(f"engine.gpus={wanted!r}: give auto, or a list of indices such as [0,1]")
    missing = [index for index in wanted if index not in range(len(gpus))]
    if missing or not wanted:
        raise BadInput(
            f"engine.gpus={list(wanted)} names {missing or 'none'} of the {len(gpus)} visible GPUs; "
            f"indices start at 0 and count what CUDA_VISIBLE_DEVICES leaves"
        )
    return [gpu for gpu in gpus if gpu.index in wanted]


def _own(models: list[Model], chosen: list[Gpu], gpus: Sequence[Gpu]) -> tuple[list[Model], list[Gpu]]:
    """The models, and the GPUs that were chosen for all and those that some have for themselves."""
    named = {index for model in models for index in model.only or ()}
    for model in models:
        if missing := sorted(set(model.only or ()).difference(range(len(gpus)))):
            raise BadInput(
                f"{model.name} is to be on GPUs {list(model.only or ())}, and {missing} are none of the "
                f"{len(gpus)} visible ones; indices start at 0 and count what CUDA_VISIBLE_DEVICES leaves"
            )
    more = [gpu for gpu in gpus if gpu.index in named and gpu not in chosen]
    if not more:
        return models, chosen
    common = tuple(gpu.index for gpu in chosen)
    placed = [model if model.only is not None else replace(model, only=common) for model in models]
    return placed, [gpu for gpu in gpus if gpu in chosen or gpu in more]


def _check_stages(made: Plan, wanted: Sequence[Sequence[Model]]) -> None:
    """Raise BadInput where models of several engines would have to take turns with each other."""
    if (stage := _mixed(made, wanted)) is not None:
        raise BadInput(
            f"{', '.join(stage.names)} do not fit at once, or are not to be there at once (residents), and "
            f"are of several engines, which do not take turns with each other. Give them one engine, or all "
            f"their engines residents=auto, leave out an agent, or free memory on the GPUs"
        )


def _mixed(made: Plan, wanted: Sequence[Sequence[Model]]) -> Stage | None:
    """The first stage whose models are of several engines."""
    for stage in made.stages:
        groups = [{model.name for model in of_one}.intersection(stage.names) for of_one in wanted]
        if len([group for group in groups if group]) > 1:
            return stage
    return None
