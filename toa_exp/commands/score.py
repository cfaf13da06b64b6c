"""Score anyone's outputs: toa-exp score task=<task> outputs=<file>.

Prints one JSON object: each metric with value, 95 % interval, n, failed and signature. Nothing is run
or generated. What a file holds is told by its fields; `task` says what it is judged by:
  wmt, wmt21..23   id, src, refs, hyps (system=, reference=)    bleu, chrf
  alpaca_eval      instruction_id, len_baseline, len_model, preference; annotations.json; or
                   model_outputs.json with annotations=<file>   win_rate, win_rate_se, lc_win_rate
  arena_hard       model_a, model_b, winner; or judgments       win_rate, elo; or score
  math500, gsm8k,  gold, pred (rows=<file> for decisions)       accuracy
  jsonl            n, c: samples and right ones (k=)            pass@<k>
  every task       id, output (one text, or a list of samples)  the metrics of the task
A file is JSON Lines, JSON or CSV, gzipped or not. A language pair may be part of the task's name:
task=wmt22.de-en. Of translations metric=comet, cometkiwi, cometkiwi_xxl or xcomet adds that metric.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path

from omegaconf import DictConfig

from toa_exp.app import launch
from toa_exp.errors import BadInput
from toa_exp.scoring.forms import score_file

_DIRECTION = re.compile(r"^(task=wmt(?:\d\d)?)[._/-]([a-z]{2,3})[-_]([a-z]{2,3})$")
_LIST = re.compile(r"^(k|reference)=([^\[\]'\"]*,[^\[\]'\"]*)$")


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_score, "score", [part for a in arguments for part in _rewritten(a)], "score")


def _rewritten(argument: str) -> list[str]:
    """An argument as Hydra needs it: a pair behind a task's name, a list without its brackets."""
    if match := _DIRECTION.match(argument):
        return [match[1], f"task.pair={match[2]}-{match[3]}"]
    if match := _LIST.match(argument):
        return [f"{match[1]}=[{match[2]}]"]
    return [argument]


def _score(config: DictConfig) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the JSON object alone
        scored = score_file(config)
        if config.rows is not None:
            _write(Path(config.rows), scored.rows)
    found = {name: measure.record() for name, measure in scored.measures.items()}
    print(json.dumps(found, indent=2, allow_nan=False))


def _write(path: Path, rows: object) -> None:
    if not rows:
        raise BadInput("rows: this form of file has no decisions of its rows")
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)  # type: ignore[attr-defined]
    except OSError as error:
        raise BadInput(f"rows={path} cannot be written: {error}") from error
