"""The likelihood of a language model as a reward: how much it would have written the answer itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any, Unpack

from toa_exp.rewards.model import ModelReward, Source, SourceFields, load, padded, precise
from toa_exp.rewards.steps import Scale, StepChat, StepEncoder
from toa_exp.tree import normalise


class Likelihood(ModelReward):
    """Steps of an answer weighed by their log-probability under a causal language model.

    A step of log-probability l (the sum over its tokens, in nats) counts as the logistic function of
    `slope` x (l + `offset`), and what is scored is the mean over steps. Steps end with a match
    of the regular expression `separator`; the last one includes what closes the answer, so that one
    that breaks off is unlikely. An empty answer has 0. `unit` and `scale` are as those of
    `rewards.process.Process`. A strong generalist so verifies what it could have written, without any
    training; of two right wordings it prefers its own. The other fields are those of
    `rewards.model.Source`.
    """

    def __init__(
        self,
        *,
        separator: str = "\n",
        slope: float = 1.5,
        offset: float = 2.0,
        unit: str = "probability",
        scale: float = 1.0,
        task: object = None,
        **source: Unpack[SourceFields],
    ) -> None:
        self._scale = Scale(unit, scale)
        self._separator, self._slope, self._offset = separator, slope, offset
        super().__init__(Source(**source), self._reader, output_head=True, range=self._scale.range)

    def fingerprint(self) -> Mapping[str, Any]:
        """The model, and how steps are found and weighed."""
        settings = {"separator": self._separator, "slope": self._slope, "offset": self._offset}
        return {"reward": "likelihood", **self._source.fingerprint(), **settings, **asdict(self._scale)}

    def _reader(self, source: Source) -> tuple[_Reader, Any, Any]:
        tokenizer, model = load(source, "AutoModelForCausalLM")
        weigh = partial(_weight, self._slope, self._offset)
        return _Reader(tokenizer, model, self._separator, weigh, self._scale), model, tokenizer


class _Reader:
    """One forward pass over the chats, padded on the right, which no causal model sees."""

    def __init__(
        self, tokenizer: Any, model: Any, separator: str, weigh: Callable[[float], float], scale: Scale
    ) -> None:
        self.encode = StepEncoder(tokenizer, separator)
        self._model = model
        self._weigh = weigh
        self._scale = scale

    def rewards(self, chats: Sequence[StepChat]) -> list[float]:
        import torch

        given = padded([chat.ids for chat in chats], self._model.device)
        with torch.inference_mode():
            logits = self._model(**given).logits
            logs = precise(logits[:, :-1]).log_softmax(-1).gather(2, given["input_ids"][:, 1:, None])[..., 0]
        # A running sum, so that a step is the difference of two of its entries; place p is token p + 1.
        sums = torch.nn.functional.pad(logs.double().cumsum(1), (1, 0)).cpu()
        return [self._reward(chat, row.tolist()) for chat, row in zip(chats, sums, strict=True)]

    def _reward(self, chat: StepChat, sums: list[float]) -> float:
        if not chat.ends:
            return self._scale(0.0)
        ends = [chat.start - 1, *chat.ends[:-1], len(chat.ids) - 1]
        steps = [sums[end] - sums[before] for before, end in pairwise(ends)]
        return self._scale(sum(map(self._weigh, steps)) / len(steps))


def _weight(slope: float, offset: float, log_probability: float) -> float:
    return normalise(slope * (log_probability + offset), 1.0)
