"""How many draws a study makes, against what its trajectories are charged.

First the paper's six methods at seven budgets share one store. Every trajectory is charged in full, as
if it had drawn all its samples itself; the store holds each distinct draw once. Between the two stands
what a store for every method would make: read-offs of anytime methods and the draws that budgets share.
Then two methods whose shape depends on their budget get limits in tokens: they are run with several
numbers of samples to find the largest that a limit pays for, and what these draw besides is not charged.

All numbers are exact and the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toa_exp import __version__
from toa_exp.store import Store

METHODS = ["random", "prs", "parallel", "sequential", "moa", "toa"]
LIMITED = ["prs", "toa"]
Size = tuple[int, int, float]


@dataclass(slots=True)
class Amount:
    """Samples, tokens and FLOPs."""

    samples: int = 0
    tokens: int = 0
    flops: float = 0.0

    def add(self, size: Size) -> None:
        """Add some more."""
        self.samples += size[0]
        self.tokens += size[1]
        self.flops += size[2]

    def over(self, other: Amount) -> str:
        """The ratios to another amount, as three columns."""
        pairs = [(self.samples, other.samples), (self.tokens, other.tokens), (self.flops, other.flops)]
        return " ".join(f"{mine / theirs:8.2f}" for mine, theirs in pairs)


@dataclass(slots=True)
class Spent:
    """What trajectories are charged, and their distinct draws by key."""

    charged: Amount = field(default_factory=Amount)
    draws: dict[str, Size] = field(default_factory=dict)

    def add(self, sample: dict[str, Any]) -> None:
        """Charge a sample of a trajectory."""
        size = (1, sample["prompt_tokens"] + sample["completion_tokens"], sample["flops"])
        self.charged.add(size)
        self.draws[sample["draw"]] = size

    @property
    def distinct(self) -> Amount:
        """The distinct draws together."""
        return total(self.draws.values())


def total(sizes: Iterable[Size]) -> Amount:
    """The sum of draws."""
    amount = Amount()
    for size in sizes:
        amount.add(size)
    return amount


def run(folder: Path, overrides: Sequence[str]) -> None:
    """Run `toa-exp run` in a folder of its own; raises SystemExit where it fails."""
    folder.mkdir()
    command = [sys.executable, "-m", "toa_exp", "run", *overrides, "tracking.mode=disabled"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The trajectories of the one run below a folder."""
    (path,) = folder.rglob("trajectories.jsonl")
    with path.open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            if len({sample["draw"] for sample in line["samples"]}) != len(line["samples"]):
                raise SystemExit(
                    f"a trajectory of {path} has a draw twice; alone it would not draw its budget"
                )
            yield line


def stored(folder: Path) -> tuple[int, int]:
    """The draws that the store of a folder holds, and their tokens."""
    store = Store(folder / "results/store.sqlite")
    ((draws, tokens),) = store.rows("SELECT count(*), sum(prompt_tokens + completion_tokens) FROM draws")
    store.close()
    return draws, tokens


def study(options: argparse.Namespace, folder: Path) -> None:
    """Six methods at all budgets over one store."""
    budgets = ",".join(map(str, options.budgets))
    run(folder, ["-m", *_shared(options), f"method={','.join(METHODS)}", f"budget.samples=[{budgets}]"])
    whole, apart = Spent(), Amount()
    print("                                            charged / own draws, by")
    print("method      charged  own draws  further   samples   tokens    FLOPs")
    for method in METHODS:
        spent, before = Spent(), len(whole.draws)
        for line in lines(folder / f"results/default/simulated/simulated/{method}"):
            for sample in line["samples"]:
                spent.add(sample)
                whole.add(sample)
        own, charged = spent.distinct, spent.charged
        apart.add((own.samples, own.tokens, own.flops))
        further = len(whole.draws) - before
        print(f"{method:10} {charged.samples:8} {own.samples:10} {further:8}  {charged.over(own)}")
    made, charged = whole.distinct, whole.charged
    if stored(folder) != (made.samples, made.tokens):
        raise SystemExit("the store holds other draws than the trajectories name")
    print(f"together   {charged.samples:8} {apart.samples:10} {made.samples:8}")
    print(f"\nevery method and budget alone / made    {charged.over(made)}")
    print(f"a store for every method / made         {apart.over(made)}")
    print(_signature(options, part="study", methods="+".join(METHODS), budgets=options.budgets), "\n")


def limits(options: argparse.Namespace, folder: Path) -> None:
    """Limits in tokens, each alone over an empty store, then all of them in one run."""
    folder.mkdir()
    print("method      limit  charged  distinct     made  made/charged  made/distinct  limit used")
    for method in LIMITED:
        alone = {str(limit): [limit] for limit in options.limits}
        for name, group in {**alone, "all": options.limits}.items():
            given = ",".join(map(str, group))
            place = folder / f"{method}-{name}"
            budget = ["budget.unit=tokens", "budget.samples=null", f"budget.limit=[{given}]"]
            run(place, [*_shared(options), f"method={method}", *budget])
            print(f"{method:10} {name:>6} {_searched(place)}", flush=True)
    print(_signature(options, part="limits", unit="tokens", limits=options.limits))


def _searched(folder: Path) -> str:
    """What a run under limits charged and drew, and the share of its limits that was charged."""
    spent, allowed = Spent(), 0.0
    for line in lines(folder):
        allowed += line["budget"]
        for sample in line["samples"]:
            spent.add(sample)
    made, _ = stored(folder)
    charged, distinct = spent.charged.samples, len(spent.draws)
    return (
        f"{charged:8} {distinct:9} {made:8} {made / charged:13.2f} {made / distinct:14.2f} "
        f"{spent.charged.tokens / allowed:11.2f}"
    )


def _shared(options: argparse.Namespace) -> list[str]:
    return [
        "task=simulated",
        f"task.problems={options.problems}",
        "ensemble=simulated",
        f"seed={options.seed}",
    ]


def _signature(options: argparse.Namespace, **more: object) -> str:
    fixed = {"task": "simulated", "ensemble": "simulated", "seed": options.seed, "n": options.problems}
    parts = {"bench": "sharing", **more, **fixed, "flops": "model", "toa-exp": __version__}
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def main() -> None:
    options = _options()
    for part in (study, limits):
        with tempfile.TemporaryDirectory() as folder:
            part(options, Path(folder) / "runs")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 256])
    parser.add_argument(
        "--limits", type=int, nargs="+", default=[1500, 3000, 6000, 12000, 24000, 48000, 96000]
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
