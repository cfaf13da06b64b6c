"""What could be changed of models that do not fit onto the GPUs, so that they do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from toa_exp.engines.packing import NoRoom, pack
from toa_exp.engines.seats import GIB, Gpu, Model

_STEP = 256  # tokens
_SMALLER = {"gpu_memory_utilization": "<fraction>"}
_FP8 = 0.58  # of weights in 16 bits: embeddings and scales are not quantised
_CONTEXTS = (None, 32768, 16384, 8192, 4096)  # tokens; less would hold no prompt with its answer
_TURNS = "agents that take turns, toa-exp run with {engine}engine.residents=auto"
# Fields of a change that may turn out not to be needed: first those that have a say in samples.
_UNDOING = (("weights", "quantised"), ("tokens",), ("share",), ("gpus",))
_KEY = re.compile(r"\+*[A-Za-z_][A-Za-z0-9_-]*")  # what may stand between two dots on a command line


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes after which all of `models` fit; `culprit` is the first of them that does not."""

    models: Sequence[Model]
    gpus: Sequence[Gpu]
    utilization: float
    residents: int | None
    culprit: Model

    def all(self) -> list[str]:
        """Every single one that was found; else those that do together; else how large a GPU would do."""
        if not self.culprit.known:
            return [f"a smaller part of a GPU for {self.culprit.name}, {_told(self.culprit, _SMALLER)}"]
        single = self._fewer() + self._told() + self._elsewhere()
        return single or self._together() + self._by_turns() + self._more() or [self._larger()]

    def _told(self) -> list[str]:
        """Those that vLLM is told."""
        if not self.culprit.settings:
            return []
        return self._spread() + self._shorter() + self._quantised() + self._shared()

    def _without_place(self, models: Sequence[Model], *, more: Sequence[Gpu] = ()) -> Model | None:
        """The first model that does not fit; None where all do."""
        try:
            pack(models, [*self.gpus, *more], self.utilization, self.residents)
        except NoRoom as full:
            return full.model
        return None

    def _fits(self, models: Sequence[Model]) -> bool:
        return self._without_place(models) is None

    def _with(self, changed: Model) -> list[Model]:
        return [changed if model is self.culprit else model for model in self.models]

    def _fewer(self) -> list[str]:
        if self.residents is None or not replace(self, residents=None)._fits(self.models):
            return []
        return [self._turns()]

    def _turns(self) -> str:
        vllm = any(model.settings for model in self.models)
        return _TURNS.format(engine="engine=vllm " if vllm else "")

    def _spread(self) -> list[str]:
        for size in self._sizes(self.culprit):
            changed = replace(self.culprit, gpus=size)
            if self._fits(self._with(changed)):
                return [f"{self.culprit.name} over several GPUs, {_said(self.culprit, changed)}"]
        return []

    def _shorter(self) -> list[str]:
        if not (self.culprit.cache or self.culprit.reads):
            return []
        low, high = 0, self.culprit.tokens // _STEP  # in steps: the first fits, the last does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._fits(self._with(replace(self.culprit, tokens=middle * _STEP)))
            low, high = (middle, high) if fits else (low, middle)
        if low * _STEP < min(1024, self.culprit.tokens):
            return []
        changed = replace(self.culprit, tokens=low * _STEP)
        return [f"a shorter context for {self.culprit.name}, {_said(self.culprit, changed)}"]

    def _quantised(self) -> list[str]:
        changed = _in_fp8(self.culprit)
        if self.culprit.quantised or not self._fits(self._with(changed)):
            return []
        return [f"{self.culprit.name} quantised, {_said(self.culprit, changed)}"]

    def _shared(self) -> list[str]:
        changed = replace(self.culprit, share=None)
        if self.culprit.share is None or not self._fits(self._with(changed)):
            return []
        return [f"no part of its own for {self.culprit.name}, {_said(self.culprit, changed)}"]

    def _elsewhere(self) -> list[str]:
        return [
            f"{model.name} on the CPU, {model.device}=cpu"
            for model in self.models
            if model.device is not None and self._fits([other for other in self.models if other is not model])
        ]

    def _together(self) -> list[str]:
        """As few as were found that do together, with models on the CPU where it takes that."""
        movable = [model for model in self.models if model.device is not None]
        for away in ([], *([model] for model in movable), movable):
            here = [model for model in self.models if model not in away]
            off = [f"{model.device}=cpu" for model in away]
            tried = [self._changed(here, context, fp8=fp8) for context in _CONTEXTS for fp8 in (False, True)]
            if found := [changed for changed in tried if changed is not None]:
                least = min(found, key=lambda changed: _cost(here, changed))
                told = [_said(*pair) for pair in zip(here, least, strict=True) if pair[0] != pair[1]] + off
                return [f"{'all of these together, ' if len(told) > 1 else ''}{' '.join(told)}"]
        return []

    def _by_turns(self) -> list[str]:
        if self.residents is None:
            return []
        return [f"{self._turns()} and {mend}" for mend in replace(self, residents=None)._together()]

    def _changed(self, models: Sequence[Model], context: int | None, *, fp8: bool) -> list[Model] | None:
        """Models so changed that all fit, and no more than it takes; None where that was not found.

        No context is over `context` tokens then, but where it may be as long as it was.
        """
        made = [_shortened(model, context) for model in models]
        while (culprit := self._without_place(made)) is not None:
            name = culprit.name
            for model in sorted(made, key=lambda model: (model.name != name, -model.weights)):
                if (smaller := self._smaller(model, fp8=fp8)) is not None:
                    made[made.index(model)] = smaller
                    break
            else:
                return None
        for place, before in enumerate(models):
            for undo in _UNDOING:
                undone = replace(made[place], **{field: getattr(before, field) for field in undo})
                if self._fits([*made[:place], undone, *made[place + 1 :]]):
                    made[place] = undone
        return made

    def _smaller(self, model: Model, *, fp8: bool) -> Model | None:
        """The model with the next change that takes less of a GPU; None where there is none."""
        if not model.settings:
            return None
        if model.share is not None and model.known:
            return replace(model, share=None)
        if size := next(self._sizes(model), None):
            return replace(model, gpus=size)
        return _in_fp8(model) if fp8 and not model.quantised else None

    def _sizes(self, model: Model) -> Iterator[int]:
        """The numbers of GPUs, more than it has, that a model can be spread over."""
        most = len(self.gpus) if model.only is None else len(model.only)
        for size in range(model.gpus + 1, most + 1):
            pairs = model.pairs or size
            if model.heads and model.heads % size == 0 and 0 in (pairs % size, size % pairs):
                yield size

    def _more(self) -> list[str]:
        for count in range(1, 9) if self.gpus else ():
            largest = max(self.gpus, key=lambda gpu: gpu.total)
            more = [replace(largest, index=-number, free=largest.total) for number in range(1, count + 1)]
            if self._without_place(self.models, more=more) is None:
                return [f"{count} more GPU{'s'[: count > 1]} of {largest.total / GIB:.0f} GiB"]
        return []

    def _larger(self) -> str:
        least = self.culprit.weights + self.culprit.cache * self.culprit.tokens
        least = least // self.culprit.gpus + self.culprit.beside
        return f"a GPU of {least / self.utilization / GIB:.0f} GiB or more for {self.culprit.name} alone"


def _in_fp8(model: Model) -> Model:
    return replace(model, weights=int(model.weights * _FP8), quantised=True)


def _shortened(model: Model, context: int | None) -> Model:
    if context is None or not model.settings:
        return model
    return replace(model, tokens=min(model.tokens, context))


def _cost(before: Sequence[Model], after: Sequence[Model]) -> tuple[int, int]:
    """How many changes there are, and how many of weights."""
    weights = sum(old.quantised != new.quantised for old, new in zip(before, after, strict=True))
    others = sum(
        getattr(old, field) != getattr(new, field)
        for old, new in zip(before, after, strict=True)
        for field in ("tokens", "share", "gpus")
    )
    return weights + others, weights


def _said(before: Model, after: Model) -> str:
    """The overrides on a command line that make a model another one."""
    changes: dict[str, object] = {}
    if after.gpus != before.gpus:
        changes["tensor_parallel_size"] = after.gpus
    if after.tokens != before.tokens:
        changes["max_model_len" if before.cache else "max_length"] = after.tokens
    if after.quantised != before.quantised:
        changes["quantization"] = "fp8"
    if after.share != before.share:
        changes["gpu_memory_utilization"] = "null"
    return _told(before, changes)


def _told(model: Model, settings: Mapping[str, object]) -> str:
    """Settings of a model on a command line, for all agents that share it."""
    return " ".join(override for place in model.settings for override in _overrides(place, settings))


def _overrides(place: Sequence[str], settings: Mapping[str, object]) -> list[str]:
    """Settings on a command line; a name with a dot in it can only stand behind the equals sign."""
    plain = next((number for number, key in enumerate(place) if not _KEY.fullmatch(key)), len(place))
    path = ".".join(place[:plain])
    if plain == len(place):
        return [f"{path}.{setting}={value}" for setting, value in settings.items()]
    inner = "{" + ", ".join(f"{setting}: {value}" for setting, value in settings.items()) + "}"
    for key in reversed(place[plain:]):
        inner = f"{{{key}: {inner}}}"
    return [f"'{path}={inner}'"]
