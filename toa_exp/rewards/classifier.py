"""A sequence classifier as reward model: one score for a problem and an answer, as a chat."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toa_exp.draws import Message
from toa_exp.engines import loading
from toa_exp.errors import BadInput
from toa_exp.rewards.model import ModelReward, Source, load, precise


class Classifier(ModelReward):
    """The output of a model of the kind AutoModelForSequenceClassification, higher is better.

    It reads the problem's prompt as the user's message and the text as the assistant's, in the chat
    template of its tokenizer. `label` picks one output of several; the other fields are those of
    `rewards.model.Source`. A folder that is not there raises BadInput at once.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        label: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 16,
        max_length: int | None = None,
        architecture: Mapping[str, Any] | None = None,
        task: object = None,
    ) -> None:
        source = Source(model, revision, device, dtype, max_batch, max_length, architecture)
        source.check()
        self.shape = source.shape(output_head=False)
        self._label = label
        super().__init__(source, self._reader)

    def fingerprint(self) -> Mapping[str, Any]:
        """The content of the folder, or hub id and revision; and the label where one is picked."""
        picked = {} if self._label is None else {"label": self._label}
        return {"reward": "classifier", **self._source.fingerprint(), **picked}

    def _reader(self, source: Source) -> tuple[_Reader, Any, Any]:
        tokenizer, model = load(source, "AutoModelForSequenceClassification")
        return _Reader(tokenizer, model, self._label, source.model), model, tokenizer


@dataclass(frozen=True, slots=True)
class _Chat:
    ids: list[int]


class _Reader:
    """One forward pass over the chats, padded on the tokenizer's side."""

    def __init__(self, tokenizer: Any, model: Any, label: int | None, name: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._config = model.config.get_text_config()
        self._pad = self._config.pad_token_id
        self._label = label_of(label, model.config.num_labels, name)
        self._left = tokenizer.padding_side == "left"
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def encode(self, prompt: str, text: str) -> _Chat:
        return _Chat(loading.token_ids(self._tokenizer, chat_of(prompt, text), "reward", reply=False))

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
        rewards: list[float] = precise(logits[:, self._label]).tolist()
        return rewards


def chat_of(prompt: str, text: str) -> list[Message]:
    """The chat that is scored."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


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
