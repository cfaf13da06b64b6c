"""Which model goes on which GPU: decided, and said, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from toa_exp.engines.changes import Changes
from toa_exp.engines.packing import NoRoom, pack
from toa_exp.engines.seats import GIB, Gpu, Model, Plan
from toa_exp.errors import BadInput


def plan(
    models: Sequence[Model], gpus: Sequence[Gpu], *, utilization: float = 0.9, residents: int | None = None
) -> Plan:
    """A place for every model; see `packing.pack`.

    Raises BadInput where two have one name, and where they do not fit, not even by turns: it names the
    model in question, what there is, and what would make all of them fit: each single change that was
    found to, or several together.
    """
    names = [model.name for model in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"several models are to be placed as {min(twice)!r}; rename the agent of that name")
    try:
        return pack(models, gpus, utilization, residents)
    except NoRoom as full:
        mends = Changes(models, gpus, utilization, residents, full.model)
        raise BadInput(_misfit(full.model, gpus, utilization, mends.all())) from None


def _misfit(model: Model, gpus: Sequence[Gpu], utilization: float, mends: Sequence[str]) -> str:
    there = ", ".join(
        f"GPU {gpu.index} has {min(gpu.total * utilization, gpu.free) / GIB:.1f} of {gpu.total / GIB:.1f} GiB"
        for gpu in gpus
    )
    sequence = ""
    if model.cache:
        sequence = f", KV cache of a sequence of {model.tokens} tokens {model.cache * model.tokens / GIB:.1f}"
    takes = f"weights {model.weights / GIB:.1f} GiB{sequence}, beside them {model.beside / GIB:.1f}"
    if not model.known:
        takes = f"its own part of a GPU is {model.share:g}"
    needs = f"{model.gpus} GPU{'s'[: model.gpus > 1]} with that much free"
    return (
        f"{model.name} does not fit: {takes}; it needs {needs}. {there or 'There is no GPU'}, less what the "
        f"other models take. What would do: {'; or '.join(mends)}"
    )
