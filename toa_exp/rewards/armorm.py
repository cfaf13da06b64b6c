"""ArmoRM: a reward model whose objectives are weighed as the prompt asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from toa_exp.engines import loading
from toa_exp.errors import BadInput
from toa_exp.rewards.base import Range
from toa_exp.rewards.model import ModelReward, Source, SourceFields, load, padded
from toa_exp.rewards.steps import check_fast


class ArmoRM(ModelReward):
    """The score of `rewards.architectures.Gated`, higher is better (Wang et al. 2024, arXiv 2406.12845).

    It reads the problem's prompt as the user's message and the text as the assistant's. The prompt
    ends with the first token of the last `prompt_end`, which is what stands between the two messages in
    the model's chat template. `range` says where most scores lie; the other fields are those of
    `rewards.model.Source`.
    """

    def __init__(
        self,
        *,
        prompt_end: str,
        range: list[float] | None = None,
        task: object = None,
        **source: Unpack[SourceFields],
    ) -> None:
        self._prompt_end = prompt_end
        super().__init__(Source(**source), self._reader, range=Range.of(range))

    def fingerprint(self) -> Mapping[str, Any]:
        """The content of the folder, or hub id and revision, and how the prompt's end is found."""
        return {"reward": "armorm", **self._source.fingerprint(), "prompt_end": self._prompt_end}

    def _reader(self, source: Source) -> tuple[_Reader, Any, Any]:
        from toa_exp.rewards.architectures import Gated

        tokenizer, model = load(source, Gated)
        check_fast(tokenizer)
        return _Reader(tokenizer, model, self._prompt_end), model, tokenizer


@dataclass(frozen=True, slots=True)
class _Chat:
    """Token ids of a chat, and the place of the prompt's last one."""

    ids: list[int]
    prompt: int


class _Reader:
    """One forward pass over the chats."""

    def __init__(self, tokenizer: Any, model: Any, prompt_end: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._prompt_end = prompt_end

    def encode(self, prompt: str, text: str) -> _Chat:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        whole = loading.render(self._tokenizer, chat, "reward", reply=False)
        end = whole.rfind(self._prompt_end)
        if end < 0 or not self._prompt_end:
            raise BadInput(
                f"reward.prompt_end={self._prompt_end!r} is not in a chat of {self._model.name_or_path!r}; "
                f"give what its template puts between the user's message and the assistant's"
            )
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ends = (stop for _, stop in encoded["offset_mapping"])
        place = next(number for number, stop in enumerate(ends) if stop > end)
        return _Chat(encoded["input_ids"], place)

    def rewards(self, chats: Sequence[_Chat]) -> list[float]:
        import torch

        device = self._model.device
        prompts = torch.tensor([chat.prompt for chat in chats], device=device)
        answers = torch.tensor([len(chat.ids) - 1 for chat in chats], device=device)
        with torch.inference_mode():
            scores = self._model(**padded([c.ids for c in chats], device), prompts=prompts, answers=answers)
        found: list[float] = scores.tolist()
        return found
