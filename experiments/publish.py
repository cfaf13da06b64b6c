"""Make of a results folder what is small enough to be committed, and what figures and comparisons need.

    python experiments/publish.py results/lab_reference <to>

Every finished run keeps its config.yaml, curve.csv, and outcomes.jsonl.gz: the lines of its trajectories with
the best reward in place of the samples. `toa-exp figures` and `toa-exp compare` read these as they read the
run itself. Tables and figures of the folder are copied, PDF left out. Paths of lab weights become relative.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
from pathlib import Path

from toa_exp.results import OUTCOMES, find_runs, trajectories_of

OF_THIS_MACHINE = re.compile(r"/\S*/(?=toa_exp/lab/weights/)")


def outcomes(trajectories: Path) -> bytes:
    """The lines without their samples; the same bytes for the same lines."""
    lines = []
    with trajectories.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            rewards = [sample["reward"] for sample in record.pop("samples") if sample["failure"] is None]
            lines.append(json.dumps({**record, "best_reward": max(rewards, default=None)}) + "\n")
    return gzip.compress("".join(lines).encode(), mtime=0)


def publish(source: Path, target: Path) -> None:
    source = source.resolve()
    for run in find_runs(source):
        folder = target / run.folder.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        config = (run.folder / "config.yaml").read_text(encoding="utf-8")
        (folder / "config.yaml").write_text(OF_THIS_MACHINE.sub("", config), encoding="utf-8")
        shutil.copyfile(run.folder / "curve.csv", folder / "curve.csv")
        (folder / OUTCOMES).write_bytes(outcomes(trajectories_of(run.folder)))
    for path in (source / "figures").glob("*"):
        if path.suffix != ".pdf":
            (target / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, target / "figures" / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a results folder small enough to be committed.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    publish(options.source, options.target)


if __name__ == "__main__":
    main()
