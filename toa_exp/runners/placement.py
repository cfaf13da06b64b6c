"""What the parts of a run take of a Ray cluster, and whether it has as much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from toa_exp.build import call
from toa_exp.errors import BadInput

_OWN = {"GPU": "num_gpus", "CPU": "num_cpus"}  # resources that have a field, which Ray takes there alone


@dataclass(frozen=True)
class Share:
    """What Ray sets aside for each of `replicas`: GPUs, CPUs and `resources` of the cluster's own.

    Of GPUs that is a part of one, or whole ones. `owner` is the place in the configuration.
    """

    owner: str = "runner"
    _: KW_ONLY
    replicas: int = 1
    num_gpus: float = 0
    num_cpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        amounts = {"replicas": self.replicas, "num_gpus": self.num_gpus, "num_cpus": self.num_cpus}
        amounts |= {f"resources.{name}": amount for name, amount in self.resources.items()}
        for name, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise BadInput(f"{self.owner}.{name}={amount}: give a number, 0 or more")
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise BadInput(
                f"{self.owner}.num_gpus={self.num_gpus}: Ray gives a part of one GPU or whole ones; give "
                f"{math.floor(self.num_gpus)} or {math.ceil(self.num_gpus)}"
            )
        for name in self.resources:
            if name in _OWN:
                raise BadInput(f"{self.owner}.resources.{name}: give {self.owner}.{_OWN[name]} instead")

    @classmethod
    def of(cls, fields: Mapping[str, Any], owner: str) -> Share:
        """The share that a configuration gives an actor. Raises BadInput for what Ray cannot set aside."""
        return call(cls, fields, owner, owner=owner)

    @property
    def size(self) -> tuple[float, float]:
        """What the largest are placed first by."""
        return self.num_gpus, self.num_cpus

    def options(self) -> dict[str, Any]:
        """As Ray takes them."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus, "resources": dict(self.resources)}

    def needs(self) -> dict[str, float]:
        """What one replica takes, by Ray's name of it."""
        needs = {"GPU": self.num_gpus, "CPU": self.num_cpus, **self.resources}
        return {name: amount for name, amount in needs.items() if amount}


def check(nodes: Sequence[Mapping[str, float]], shares: Sequence[tuple[str, Share]]) -> None:
    """Raise BadInput where the nodes' resources cannot hold all replicas at once.

    Largest first, each on the first node with room for it, GPUs before all else.
    """
    free = [dict(node) for node in nodes]
    wanted = [(what, share) for what, share in shares for _ in range(share.replicas)]
    for what, share in sorted(wanted, key=lambda pair: pair[1].size, reverse=True):
        needs = share.needs()
        node = next((node for node in free if _holds(node, needs)), None)
        if node is None:
            asked = [f"{share.replicas} x {name}: {_listed(share.needs())}" for name, share in shares]
            raise BadInput(
                f"the Ray cluster has no room for {what}, which takes {_listed(needs)}. Asked for: "
                f"{'; '.join(asked)}. The cluster has nodes of {'; '.join(_listed(_own(n)) for n in nodes)}. "
                f"Ask for less, or add nodes"
            )
        for name, amount in needs.items():
            node[name] -= amount


def _holds(node: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= amount - 1e-6 for name, amount in needs.items())


def _own(node: Mapping[str, float]) -> dict[str, float]:
    """Without what Ray adds for its own use."""
    hidden = ("node:", "memory", "object_store_memory")
    return {name: amount for name, amount in node.items() if not name.startswith(hidden)}


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"
