"""Which model goes on which GPU: decided, and said, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toa_exp.engines.packing import GIB, Gpu, Model, NoRoom, Plan, pack
from toa_exp.errors import BadInput

_STEP = 256  # tokens
_FP8 = 0.58  # of weights in 16 bits: embeddings and scales are not quantised


def plan(
    models: Sequence[Model], gpus: Sequence[Gpu], *, utilization: float = 0.9, residents: int | None = None
) -> Plan:
    """A place for every model; see `packing.pack`.

    Raises BadInput where two have one name, and where they do not fit, not even by turns: it names the
    model in question, what there is, and each single change that was found to make them fit.
    """
    names = [model.name for model in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"several models are to be placed as {min(twice)!r}; rename the agent of that name")
    try:
        return pack(models, gpus, utilization, residents)
    except NoRoom as full:
        mends = _Mends(models, gpus, utilization, residents, full.model)
        raise BadInput(_misfit(full.model, gpus, utilization, mends.all())) from None


def _misfit(model: Model, gpus: Sequence[Gpu], utilization: float, mends: Sequence[str]) -> str:
    there = ", ".join(
        f"GPU {gpu.index} has {min(gpu.total * utilization, gpu.free) / GIB:.1f} of {gpu.total / GIB:.1f} GiB"
        for gpu in gpus
    )
    sequence = ""
    if model.cache:
        sequence = f", KV cache of a sequence of {model.tokens} tokens {model.cache * model.tokens / GIB:.1f}"
    return (
        f"{model.name} does not fit: weights {model.weights / GIB:.1f} GiB{sequence}, beside them "
        f"{model.overhead / GIB:.1f}; it needs {model.gpus} GPU{'s'[: model.gpus > 1]} with that much free. "
        f"{there or 'There is no GPU'}, less what the other models take. What would do: {'; or '.join(mends)}"
    )


@dataclass(frozen=True, slots=True)
class _Mends:
    """Single changes after which all models fit."""

    models: Sequence[Model]
    gpus: Sequence[Gpu]
    utilization: float
    residents: int | None
    culprit: Model

    def all(self) -> list[str]:
        """Every one found; where there is none, how large a GPU would do."""
        found = self._fewer() + self._told() + self._elsewhere()
        return found or self._more() or [self._larger()]

    def _told(self) -> list[str]:
        """Those that vLLM is told."""
        if self.culprit.settings is None:
            return []
        return self._spread() + self._shorter() + self._quantised() + self._shared()

    def _fits(self, models: Sequence[Model], *, more: Sequence[Gpu] = (), by_turns: bool = False) -> bool:
        try:
            residents = None if by_turns else self.residents
            pack(models, [*self.gpus, *more], self.utilization, residents)
        except NoRoom:
            return False
        return True

    def _with(self, changed: Model) -> list[Model]:
        return [changed if model is self.culprit else model for model in self.models]

    def _fewer(self) -> list[str]:
        if self.residents is None or not self._fits(self.models, by_turns=True):
            return []
        return ["agents that take turns, toa-exp run with engine=vllm engine.residents=auto"]

    def _spread(self) -> list[str]:
        culprit = self.culprit
        for size in range(culprit.gpus + 1, len(self.gpus) + 1):
            parts = culprit.heads is not None and culprit.heads % size == 0
            if parts and self._fits(self._with(replace(culprit, gpus=size))):
                return [f"{culprit.name} over several GPUs, {culprit.settings}.tensor_parallel_size={size}"]
        return []

    def _shorter(self) -> list[str]:
        if not self.culprit.cache:
            return []
        low, high = 0, self.culprit.tokens // _STEP  # in steps: the first fits, the last does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._fits(self._with(replace(self.culprit, tokens=middle * _STEP)))
            low, high = (middle, high) if fits else (low, middle)
        if low * _STEP < min(1024, self.culprit.tokens):
            return []
        setting = f"{self.culprit.settings}.max_model_len={low * _STEP}"
        return [f"a shorter context for {self.culprit.name}, {setting}"]

    def _quantised(self) -> list[str]:
        weights = int(self.culprit.weights * _FP8)
        if self.culprit.quantised or not self._fits(self._with(replace(self.culprit, weights=weights))):
            return []
        return [f"{self.culprit.name} quantised, {self.culprit.settings}.quantization=fp8"]

    def _shared(self) -> list[str]:
        if self.culprit.share is None or not self._fits(self._with(replace(self.culprit, share=None))):
            return []
        setting = f"{self.culprit.settings}.gpu_memory_utilization"
        return [f"no part of its own for {self.culprit.name}: leave out its {setting}"]

    def _elsewhere(self) -> list[str]:
        return [
            f"{model.name} on the CPU, {model.device}=cpu"
            for model in self.models
            if model.device is not None and self._fits([other for other in self.models if other is not model])
        ]

    def _more(self) -> list[str]:
        for count in range(1, 9) if self.gpus else ():
            largest = max(self.gpus, key=lambda gpu: gpu.total)
            more = [replace(largest, index=-number, free=largest.total) for number in range(1, count + 1)]
            if self._fits(self.models, more=more):
                return [f"{count} more GPU{'s'[: count > 1]} of {largest.total / GIB:.0f} GiB"]
        return []

    def _larger(self) -> str:
        least = self.culprit.weights + self.culprit.cache * self.culprit.tokens
        least = least // self.culprit.gpus + self.culprit.overhead
        return f"a GPU of {least / self.utilization / GIB:.0f} GiB or more for {self.culprit.name} alone"
