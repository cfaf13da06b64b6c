"""What the parts of a run take of a Ray cluster, and whether it has as much."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from toa_exp.build import call
from toa_exp.errors import BadInput

_UNIT = 10_000  # parts of a resource that Ray tells apart
_STEPS = 5_000  # of a search for room, which finds it at once or is long
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

    def rank(self, nodes: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
        """What is placed first has the lowest: that which fewest nodes can hold, then the largest."""
        needs = self.needs()
        able = sum(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes)
        return able, -self.num_gpus, -self.num_cpus

    def options(self) -> dict[str, Any]:
        """As Ray takes them."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus, "resources": dict(self.resources)}

    def needs(self) -> dict[str, float]:
        """What one replica takes, by Ray's name of it."""
        needs = {"GPU": self.num_gpus, "CPU": self.num_cpus, **self.resources}
        return {name: amount for name, amount in needs.items() if amount}


def check(nodes: Sequence[Mapping[str, float]], shares: Sequence[tuple[str, Share]]) -> None:
    """Raise BadInput where the nodes' resources cannot hold all replicas at once, however they are placed.

    What is named is the first for which there is no room, those that are hardest to place before it.
    """
    wanted = [pair for pair in shares for _ in range(pair[1].replicas) if pair[1].needs()]
    wanted.sort(key=lambda pair: pair[1].rank(nodes))
    needs = [share.needs() for _, share in wanted]
    if _fit(nodes, needs):
        return
    most = bisect_left(range(len(needs)), True, key=lambda count: not _fit(nodes, needs[:count])) - 1
    what, share = wanted[most]
    asked = [f"{share.replicas} x {name}: {_listed(share.needs())}" for name, share in shares]
    raise BadInput(
        f"the Ray cluster has no room for {what}, which takes {_listed(share.needs())}. Asked for: "
        f"{'; '.join(asked)}. The cluster has nodes of {'; '.join(_listed(_own(n)) for n in nodes)}. "
        f"Ask for less, or add nodes"
    )


def _fit(nodes: Sequence[Mapping[str, float]], wanted: Sequence[Mapping[str, float]]) -> bool:
    """Whether all that is wanted has room at once. A search that grows long says so too: Ray will tell."""
    names = sorted({name for needs in wanted for name in needs})
    sizes = [_counted(needs, names) for needs in wanted]
    stack = [(tuple(sorted(_counted(node, names) for node in nodes)), 0)]
    seen: set[tuple[tuple[tuple[int, ...], ...], int]] = set()
    while stack and len(seen) < _STEPS:
        free, placed = stack.pop()
        if placed == len(sizes):
            return True
        if (free, placed) in seen or not _enough(free, sizes[placed:]):
            continue
        seen.add((free, placed))
        # Of nodes that are alike one is tried, and that which has least to spare first: it is popped next.
        for node in sorted(set(free), key=sum, reverse=True):
            left = tuple(there - size for there, size in zip(node, sizes[placed], strict=True))
            if min(left) >= 0:
                others = list(free)
                others.remove(node)
                stack.append((tuple(sorted([*others, left])), placed + 1))
    return bool(stack)


def _enough(free: Sequence[Sequence[int]], sizes: Sequence[tuple[int, ...]]) -> bool:
    """Whether nodes have as much as is wanted in all, and each of them alone room for all of a size."""
    for kind in range(len(sizes[0])):
        if sum(node[kind] for node in free) < sum(size[kind] for size in sizes):
            return False
    return all(sum(_times(node, size) for node in free) >= count for size, count in Counter(sizes).items())


def _times(node: Sequence[int], size: Sequence[int]) -> int:
    """How often a node holds something of a size."""
    return min(there // part for there, part in zip(node, size, strict=True) if part)


def _counted(amounts: Mapping[str, float], names: Sequence[str]) -> tuple[int, ...]:
    return tuple(round(amounts.get(name, 0) * _UNIT) for name in names)


def _own(node: Mapping[str, float]) -> dict[str, float]:
    """Without what Ray adds for its own use."""
    hidden = ("node:", "memory", "object_store_memory")
    return {name: amount for name, amount in node.items() if not name.startswith(hidden)}


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"
