"""WMT test sets by sacrebleu's own index, which downloads them once and checks their digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toa_exp.errors import BadInput, choose

SIZES = {
    "wmt22": {"cs-en": 1448, "de-en": 1984, "zh-en": 1875},
    "wmt23": {"de-en": 549, "zh-en": 1976},
}
"""Numbers of segments, for where the test sets are not at hand."""


def size(testset: str, pair: str) -> int | None:
    """How many segments a test set has, where that is known without the net; else None."""
    from sacrebleu.dataset import DATASETS

    known = SIZES.get(testset, {}).get(pair)
    dataset: Any = DATASETS.get(testset)
    if known is not None or dataset is None or pair not in dataset.langpairs:
        return known
    copy = Path(dataset._get_txt_file_path(pair, "src"))
    return len(_lines(str(copy))) if copy.is_file() else None


def segments(testset: str, pair: str) -> Iterator[dict[str, Any]]:
    """Rows of id (from 0), src and refs by label: the references that sacrebleu scores with.

    Raises BadInput for a test set or pair that sacrebleu does not have, and where it cannot be loaded.
    """
    from sacrebleu.dataset import DATASETS

    if testset not in DATASETS:
        raise choose("task.testset", testset, sorted(name for name in DATASETS if name.startswith("wmt2")))
    dataset: Any = DATASETS[testset]
    if pair not in dataset.langpairs:
        raise choose(f"task.pair of {testset}:", pair, sorted(dataset.langpairs))
    try:
        source = _lines(dataset.get_source_file(pair))
        files = dataset.get_reference_files(pair)
        references = {_label(file, pair): _lines(file) for file in files}
    except (OSError, RuntimeError, ValueError, SystemExit) as error:  # sacrebleu exits where it cannot load
        raise BadInput(
            f"the test set {testset} {pair} could not be loaded by sacrebleu ({type(error).__name__}: "
            f"{error}). Where the net is out of reach, copy ~/.sacrebleu from a machine where `sacrebleu -t "
            f"{testset} -l {pair} --echo src` was run ($SACREBLEU says where it lies), or give "
            f"task.path=<file.jsonl> with rows of id, src and refs. Its source: {', '.join(dataset.data)}"
        ) from error
    for number, line in enumerate(source):
        yield {
            "id": number,
            "src": line,
            "refs": {label: lines[number] for label, lines in references.items()},
        }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _label(path: str, pair: str) -> str:
    """The label of a reference file such as wmt22.de-en.ref-A."""
    return Path(path).name.partition(f"{pair}.")[2].removeprefix("ref").lstrip("-:") or "ref"
