"""A process reward model: a token classifier that tells step by step whether an answer is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from toa_exp.errors import BadInput, choose
from toa_exp.rewards.model import ModelReward, Source, load, precise
from toa_exp.rewards.steps import Scale, StepChat, StepEncoder

AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda steps: sum(steps) / len(steps),
    "min": min,
    "product": math.prod,
    "last": lambda steps: steps[-1],
}


class Process(ModelReward):
    """Probabilities that the steps of an answer are right, aggregated; higher is better.

    A model of the kind AutoModelForTokenClassification is read at the last token of each step, which
    ends with a match of the regular expression `separator`. With one output the probability is its
    logistic function, with two the softmax's second; an empty answer has probability 0.
    `aggregation` is mean, min, product or last (Lightman et al. 2023 take the product, Wang et al.
    2024 the minimum). `unit` probability gives scores in [0, 1], log_odds their logit, which TOA's
    normalisation turns back into the probability where tau is 1. Scores are multiplied by `scale`.
    The other fields are those of `rewards.model.Source`.
    """

    def __init__(
        self,
        *,
        model: str,
        separator: str = "\n",
        aggregation: str = "mean",
        unit: str = "probability",
        scale: float = 1.0,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 16,
        max_length: int | None = None,
        architecture: Mapping[str, Any] | None = None,
        task: object = None,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise choose("reward.aggregation", aggregation, list(AGGREGATIONS))
        source = Source(model, revision, device, dtype, max_batch, max_length, architecture)
        source.check()
        self.shape = source.shape(output_head=False)
        self._scale = Scale(unit, scale)
        self._settings = {"separator": separator, "aggregation": aggregation}
        super().__init__(source, self._reader)

    def fingerprint(self) -> Mapping[str, Any]:
        """The model, and how steps are found and aggregated."""
        return {"reward": "process", **self._source.fingerprint(), **self._settings, **asdict(self._scale)}

    def _reader(self, source: Source) -> tuple[_Reader, Any, Any]:
        tokenizer, model = load(source, "AutoModelForTokenClassification")
        return _Reader(tokenizer, model, self._scale, **self._settings), model, tokenizer


class _Reader:
    """One forward pass over the chats, padded on the right, which no causal model sees."""

    def __init__(self, tokenizer: Any, model: Any, scale: Scale, *, separator: str, aggregation: str) -> None:
        if model.config.num_labels > 2:
            raise BadInput(
                f"reward: a process reward model has one output or two, this has {model.config.num_labels}"
            )
        self.encode = StepEncoder(tokenizer, separator)
        self._model = model
        self._aggregate = AGGREGATIONS[aggregation]
        self._scale = scale

    def rewards(self, chats: Sequence[StepChat]) -> list[float]:
        import torch

        width = max(len(chat.ids) for chat in chats)
        ids = torch.tensor([chat.ids + [0] * (width - len(chat.ids)) for chat in chats])
        mask = torch.tensor([[1] * len(chat.ids) + [0] * (width - len(chat.ids)) for chat in chats])
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        logits = precise(logits)
        right = logits[..., 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[..., 1]
        return [self._reward(row[chat.ends].tolist()) for row, chat in zip(right.cpu(), chats, strict=True)]

    def _reward(self, steps: list[float]) -> float:
        return self._scale(self._aggregate(steps) if steps else 0.0)
