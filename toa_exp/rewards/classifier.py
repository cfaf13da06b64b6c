"""A sequence classifier as reward model: one score for a problem and an answer, as a chat."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toa_exp.batching import Batcher
from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.cost import architecture as architecture_of
from toa_exp.draws import Score
from toa_exp.engines import loading
from toa_exp.ensemble import folder_digest, model_config
from toa_exp.errors import BadInput, Permanent, Unavailable


class Classifier:
    """The output of a model of the kind AutoModelForSequenceClassification, higher is better.

    It reads the problem's prompt as the user's message and the text as the assistant's, in the chat
    template of its tokenizer. `model` is a hub id, of `revision`, or a folder; `label` picks one output
    of several. `device` and `dtype` are as those of the transformers engine, `max_batch` answers are
    read at once. Nothing is cut off: an answer over `max_length` tokens (None: the limit of model and
    tokenizer) is a Permanent error. `architecture` replaces the fields of the model's config.json that
    FLOPs are counted from. The model is loaded for the first score; a folder that is not there raises
    BadInput at once.
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
        loading.check_placement("reward", device, dtype)
        for name, value in {"max_batch": max_batch, "max_length": max_length}.items():
            if value is not None and value < 1:
                raise BadInput(f"reward.{name}={value} must be at least 1")
        loading.check_model(model, "reward")
        config = architecture or model_config(model, revision, "reward")
        self.shape: Architecture | None = architecture_of(config, output_head=False)
        self._model = model
        self._revision = revision
        self._label = label
        self._settings = (device, dtype, max_length)
        self._scorer: _Scorer | None = None
        self._batcher = Batcher(self._score, max_batch, order=lambda pair: len(pair[0]) + len(pair[1]))

    def fingerprint(self) -> Mapping[str, Any]:
        """The content of the folder, or hub id and revision; and the label where one is picked."""
        folder = Path(self._model).expanduser()
        fingerprint: dict[str, Any] = {"reward": "classifier"}
        if folder.is_dir():
            fingerprint["model"] = folder_digest(folder)
        else:
            fingerprint |= {"model": self._model, "revision": self._revision}
        if self._label is not None:
            fingerprint["label"] = self._label
        return fingerprint

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; its tokens are all that the model read, padding left out."""
        result = await self._batcher.submit((problem.prompt, text))
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        """End the thread and free the model."""
        await self._batcher.close()
        self._scorer = None

    def _score(self, pairs: list[tuple[str, str]]) -> list[Score | Permanent]:
        if self._scorer is None:
            self._scorer = _Scorer(self._model, self._revision, self._label, *self._settings)
        return self._scorer(pairs)


class _Scorer:
    """The loaded model."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        label: int | None,
        device: str,
        dtype: str,
        max_length: int | None,
    ) -> None:
        self._name = model
        self._tokenizer = loading.load_tokenizer(model, revision, "reward")
        family = "AutoModelForSequenceClassification"
        place = loading.device_of(device)
        self._model = loading.load_model(family, model, revision, place, dtype, "reward")
        self._config = self._model.config.get_text_config()
        self._pad = self._config.pad_token_id
        self._label = _label(label, self._model.config.num_labels, model)
        self._window = _window(max_length, self._model.config, self._tokenizer)
        self._left = self._tokenizer.padding_side == "left"
        self._takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters

    def __call__(self, pairs: list[tuple[str, str]]) -> list[Score | Permanent]:
        """The scores of pairs of prompt and answer, in one forward pass."""
        import torch

        started = time.perf_counter()
        chats = [self._tokens(prompt, text) for prompt, text in pairs]
        fitting = [ids for ids in chats if len(ids) <= self._window]
        try:
            rewards = iter(self._rewards(fitting))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise Unavailable(
                f"{self._model.device} is out of memory with {len(fitting)} answers at once; lower "
                f"reward.max_batch"
            ) from error
        seconds = (time.perf_counter() - started) / max(1, len(fitting))
        return [
            self._result(next(rewards), len(ids), seconds)
            if len(ids) <= self._window
            else self._too_long(len(ids))
            for ids in chats
        ]

    def _tokens(self, prompt: str, text: str) -> list[int]:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        return loading.token_ids(self._tokenizer, chat, "reward", reply=False)

    def _rewards(self, chats: list[list[int]]) -> list[float]:
        if not chats:
            return []
        pad = self._pad
        if pad is None:
            # The model takes its output behind the last token that is no padding, so that a token of
            # the answers must not serve as such. Where all tokens occur, each answer goes alone.
            used = set().union(*chats)
            pad = next((token for token in range(self._config.vocab_size) if token not in used), None)
            self._config.pad_token_id = pad
        if pad is None:
            return [reward for ids in chats for reward in self._forward([ids], 0)]
        return self._forward(chats, pad)

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
        rewards: list[float] = logits[:, self._label].float().tolist()
        return rewards

    def _result(self, reward: float, tokens: int, seconds: float) -> Score | Permanent:
        if math.isfinite(reward):
            return Score(reward, tokens, seconds)
        return Permanent(
            f"reward: {self._name!r} gave {reward} for an answer of {tokens} tokens. Check its weights, or "
            f"try reward.dtype=float32"
        )

    def _too_long(self, tokens: int) -> Permanent:
        return Permanent(
            f"reward: problem and answer have {tokens} tokens, and {self._name!r} reads at most "
            f"{self._window:.0f}. Lower ensemble.sampling.max_tokens, or choose a reward with a longer window"
        )


def _label(label: int | None, count: int, model: str) -> int:
    """The index of the output that is the score; raises BadInput where that is not settled."""
    if label is None and count == 1:
        return 0
    if label is not None and 0 <= label < count:
        return label
    raise BadInput(
        f"reward: {model!r} has {count} outputs, and reward.label={label} names none of them; give "
        f"reward.label=<0 to {count - 1}>, or a reward model, which has one output"
    )


def _window(max_length: int | None, config: Any, tokenizer: Any) -> float:
    """The most tokens that are read; raises BadInput for a `max_length` that the model cannot read."""
    window = loading.window_of(config) or math.inf
    if max_length is None:
        return min(window, float(tokenizer.model_max_length))
    if max_length > window:
        raise BadInput(f"reward.max_length={max_length} is over the model's window of {window} tokens")
    return max_length
