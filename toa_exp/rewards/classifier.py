"""A sequence classifier as reward model: one score for a problem and an answer, as a chat."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from toa_exp.draws import Message
from toa_exp.engines import loading
from toa_exp.errors import BadInput
from toa_exp.rewards.base import Range
from toa_exp.rewards.model import ModelReward, Source, SourceFields, load, precise


class Classifier(ModelReward):
    """The output of a model of the kind AutoModelForSequenceClassification, higher is better.

    It reads the problem's prompt as the user's message and the text as the assistant's, behind the
    message `system` where there is one, in the chat template of its tokenizer. `label` picks one output
    of several and `range` says where most scores lie; the other fields are those of
    `rewards.model.Source`. Qwen2.5-Math-RM is one too. A folder that is not there raises BadInput at once.
    """

    def __init__(
        self,
        *,
        label: int | None = None,
        system: str | None = None,
        range: list[float] | None = None,
        task: object = None,
        **source: Unpack[SourceFields],
    ) -> None:
        self._label = label
        self._system = system
        super().__init__(Source(**source), self._reader, range=Range.of(range))

    def fingerprint(self) -> Mapping[str, Any]:
        """The content of the folder, or hub id and revision; label and system message where given."""
        settings = {"label": self._label, "system": self._system}
        given = {name: value for name, value in settings.items() if value is not None}
        return {"reward": "classifier", **self._source.fingerprint(), **given}

    def _reader(self, source: Source) -> tuple[_Reader, Any, Any]:
        tokenizer, model = load(source, "AutoModelForSequenceClassification")
        return _Reader(tokenizer, model, self._label, self._system, source.model), model, tokenizer


@dataclass(frozen=True, slots=True)
class _Chat:
    ids: list[int]


class _Reader:
    """One forward pass over the chats, padded on the tokenizer's side."""

    def __init__(self, tokenizer: Any, model: Any, label: int | None, system: str | None, name: str) -> None:
        self._tokenizer = tokenizer
        self._system = system
        self._model = model
        self._config = model.config.get_text_config()
        self._pad = self._config.pad_token_id
        self._label = label_of(label, model.config.num_labels, name)
        self._left = tokenizer.padding_side == "left"
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def encode(self, prompt: str, text: str) -> _Chat:
        chat = chat_of(prompt, text, self._system)
        return _Chat(loading.token_ids(self._tokenizer, chat, "reward", reply=False))

    def rewards(self, chats: Sequence[_Chat]) -> list[float]:
        pad = self._pad
        if pad is None:
            # The model takes its output behind the last token that is no padding, so that a token of
            # the answers must not serve as such. Where all tokens occur, each answer goes alone.
            used = {token for chat in chats for token in chat.ids}
            pad = next((token for token in range(self._config.vocab_size) if token not in used), None)
            self._config.pad_token_id = pad
        if pad is None:
            return [reward for chat in chats for reward in self._forward([chat.ids], 0)]
        return self._forward([chat.ids for chat in chats], pad)

    def _forward(self, chats: list[list[int]], pad: int) -> list[float]:
        import torch

        width = max(len(ids) for ids in chats)
        rows, mask = [], []
        for ids in chats:
            gap = width - len(ids)
            rows.append([pad] * gap + ids if self._left else ids + [pad] * gap)
            mask.append([0] * gap + [1] * len(ids) if self._left else [1] * len(ids) + [0] * gap)
        given = {
            "input_ids": torch.tensor(rows, device=self._model.device),
            "attention_mask": torch.tensor(mask, device=self._model.device),
        }
        if self._left and self._takes_positions:
            given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self._model(**given).logits
        if logits.dim() == 3:  # at every token: that of the last one counts
            ends = given["attention_mask"].cumsum(-1).argmax(-1)
            logits = logits[torch.arange(len(ends), device=ends.device), ends]
        rewards: list[float] = precise(logits[:, self._label]).tolist()
        return rewards


def chat_of(prompt: str, text: str, system: str | None) -> list[Message]:
    """The chat that is scored."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def label_of(label: int | None, count: int, model: str) -> int:
    """The index of the output that is the score; raises BadInput where that is not settled."""
    if label is None and count == 1:
        return 0
    if label is not None and 0 <= label < count:
        return label
    raise BadInput(
        f"reward: {model!r} has {count} outputs, and reward.label={label} names none of them; give "
        f"reward.label=<0 to {count - 1}>, or a reward model, which has one output"
    )
