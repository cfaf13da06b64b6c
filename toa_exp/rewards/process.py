"""A process reward model: it tells step by step whether an answer is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

from toa_exp.errors import BadInput, choose
from toa_exp.rewards.layouts import Layout
from toa_exp.rewards.model import ModelReward, Source, SourceFields, load, padded, precise
from toa_exp.rewards.steps import Scale, StepChat

if TYPE_CHECKING:
    from torch import Tensor

SUM_LOGITS = "sum_logits"
AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda steps: sum(steps) / len(steps),
    "min": min,
    "product": math.prod,
    "last": lambda steps: steps[-1],
    SUM_LOGITS: sum,  # of log-odds, the others are of probabilities
}


class Process(ModelReward):
    """Probabilities that the steps of an answer are right, aggregated; higher is better.

    Steps are found by the regular expression `separator` and read as `layout` says, with `system`,
    `opening`, `mark` and `join` (rewards/layouts.py). The model is of the kind
    AutoModelForTokenClassification, or one of rewards/architectures.py: with one output the probability
    is its logistic function, with two the softmax's second. With `verdicts`, the tokens for right and
    wrong, it is a language model, and the probability that of the first against the second. An empty
    answer has probability 0.

    `aggregation` is mean, min, product, last, or sum_logits, the sum of the steps' log-odds (Lightman et
    al. 2023 take the product, Wang et al. 2024 the minimum). `unit` probability gives scores in [0, 1],
    log_odds their logit, which TOA's normalisation turns back into the probability where tau is 1. Scores
    are multiplied by `scale`. The other fields are those of `rewards.model.Source`.
    """

    def __init__(
        self,
        *,
        separator: str = "\n",
        layout: str = "chat",
        system: str | None = None,
        opening: str = "{prompt}\n",
        mark: str | None = None,
        join: str = "",
        verdicts: list[str] | None = None,
        aggregation: str = "mean",
        unit: str = "probability",
        scale: float = 1.0,
        task: object = None,
        **source: Unpack[SourceFields],
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise choose("reward.aggregation", aggregation, list(AGGREGATIONS))
        if verdicts is not None and len(verdicts) != 2:
            raise BadInput(f"reward.verdicts={verdicts}: give two tokens, that for right and that for wrong")
        self._layout = Layout(layout, system, opening, mark, join)
        self._verdicts = verdicts
        self._scale = Scale(unit, scale)
        self._settings = {"separator": separator, "aggregation": aggregation}
        language = verdicts is not None
        super().__init__(Source(**source), self._reader, output_head=language, range=self._scale.range)

    def fingerprint(self) -> Mapping[str, Any]:
        """The model, and how steps are found and aggregated."""
        verdicts = {} if self._verdicts is None else {"verdicts": self._verdicts}
        settings = {**self._settings, **self._layout.fingerprint(), **verdicts}
        return {"reward": "process", **self._source.fingerprint(), **settings, **asdict(self._scale)}

    def _reader(self, source: Source) -> tuple[_Reader, Any, Any]:
        family = "AutoModelForTokenClassification" if self._verdicts is None else "AutoModelForCausalLM"
        tokenizer, model = load(source, family, chat=self._layout.chat)
        encode = self._layout.encoder(tokenizer, self._settings["separator"])
        tokens = None if self._verdicts is None else [_token(tokenizer, word) for word in self._verdicts]
        aggregation = self._settings["aggregation"]
        return _Reader(encode, model, tokens, aggregation, self._scale), model, tokenizer


class _Reader:
    """One forward pass over the chats."""

    def __init__(
        self,
        encode: Callable[[str, str], StepChat],
        model: Any,
        verdicts: list[int] | None,
        aggregation: str,
        scale: Scale,
    ) -> None:
        if verdicts is None and model.config.num_labels > 2:
            raise BadInput(
                f"reward: a process reward model has one output or two, this has {model.config.num_labels}"
            )
        self.encode = encode
        self._model = model
        self._verdicts = verdicts
        self._aggregation = aggregation
        self._scale = scale

    def rewards(self, chats: Sequence[StepChat]) -> list[float]:
        import torch

        with torch.inference_mode():
            logits = self._model(**padded([chat.ids for chat in chats], self._model.device)).logits
            # What stands at other places is dropped first: over a vocabulary it would be large.
            odds = [self._log_odds(row[chat.ends]) for row, chat in zip(logits, chats, strict=True)]
        return [self._reward(steps) for steps in odds]

    def _log_odds(self, logits: Tensor) -> Tensor:
        """The log-odds that each step is right."""
        if self._verdicts is not None:
            logits = logits[:, self._verdicts].flip(-1)
        logits = precise(logits)
        return logits[:, 0] if logits.shape[-1] == 1 else logits[:, 1] - logits[:, 0]

    def _reward(self, odds: Tensor) -> float:
        if not len(odds):
            return self._scale(0.0)
        aggregate = AGGREGATIONS[self._aggregation]
        if self._aggregation == SUM_LOGITS:
            return self._scale.of_log_odds(aggregate(odds.tolist()))
        return self._scale(aggregate(odds.sigmoid().tolist()))


def _token(tokenizer: Any, word: str) -> int:
    """The token of a verdict: the last one of its text, as the models' authors take it."""
    ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadInput(f"reward.verdicts: the tokenizer makes no token of {word!r}")
    return ids[-1]
