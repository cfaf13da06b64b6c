"""How many models of a device that no plan is made for are in memory at once: by weight."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from toa_exp.engines.loading import device_of
from toa_exp.engines.seats import gib
from toa_exp.engines.sizes import CPU, free_memory, weights_of
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput

ROOM = 0.8
"""The part of the free memory that weights take; the rest is for activations, and keys and values."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """A model that is to be loaded: whose it is, and in which number format it runs."""

    whose: str
    model: str
    revision: str | None
    dtype: str

    @classmethod
    def of_agent(cls, agent: Agent, dtype: str) -> Weights:
        """Those of an agent that runs in this process."""
        return cls(f"agent {agent.name!r}", agent.model, agent.revision, dtype)

    def size(self, place: str) -> int:
        """Bytes on a place that `free_memory` names. Raises BadInput where they are not known."""
        dtype = "float32" if self.dtype == "auto" and place == CPU else self.dtype
        return weights_of(self.model, self.revision, self.whose, dtype=dtype)


def at_once(models: Sequence[Weights], device: str) -> int:
    """How many models fit on a device at once, whichever they are; all, where a size is not known.

    Says so in the log. Raises BadInput where one does not fit even alone.
    """
    place, free = free_memory(str(device_of(device, "engine.device")))
    try:
        sizes = [(model.size(place), model.whose) for model in models]
    except BadInput as error:
        log.warning("what the agents take is not known, so that all are loaded at once: %s", error)
        return len(models)
    count = fitting([size for size, _ in sizes], free)
    each = ", ".join(f"{whose} {gib(size)}" for size, whose in sizes)
    if not count:
        size, whose = max(sizes)
        raise BadInput(
            f"{whose} does not fit: {gib(size)} GiB of weights, {gib(free)} GiB free on {place}. "
            f"Free memory there, give engine.dtype=bfloat16, another engine.device or a smaller model, or "
            f"choose engine=vllm, which quantises a model or spreads it over several GPUs"
        )
    log.log(
        logging.INFO if count == len(models) else logging.WARNING,
        "%d of %d models at once: %s GiB free on %s, of which weights take %.0f %% at most (%s GiB)",
        count, len(models), gib(free), place, 100 * ROOM, each,
    )  # fmt: skip
    return count


def fitting(sizes: Sequence[int], free: int) -> int:
    """How many models of these bytes fit into `free` ones, the largest first; 0 where not even one does.

    They are to leave room for the caches, but for one alone, which is to be loaded where it can be.
    """
    largest = sorted(sizes, reverse=True)
    if not largest or largest[0] > free:
        return 0
    return max([1, *(n for n in range(1, len(largest) + 1) if sum(largest[:n]) <= ROOM * free)])
