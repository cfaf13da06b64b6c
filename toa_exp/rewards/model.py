"""What rewards that run a model of transformers share: loading, batches, and the limits of the model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Required, TypedDict

from toa_exp.batching import Batcher
from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.cost import architecture as architecture_of
from toa_exp.draws import Score
from toa_exp.engines import checkpoints, loading
from toa_exp.engines.gpus import Ground
from toa_exp.engines.seats import Model
from toa_exp.engines.sizes import weights_of
from toa_exp.ensemble import check_revision, folder_digest, model_config
from toa_exp.errors import BadInput, Permanent, Unavailable
from toa_exp.rewards.base import Range

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DECIMALS = 6  # of a score: beyond them batching shows, in float64 too since norms compute in float32


class SourceFields(TypedDict, total=False):
    """The fields of `Source`, as rewards take them among their keywords."""

    model: Required[str]
    revision: str | None
    device: str
    dtype: str
    max_batch: int
    max_length: int | None
    architecture: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Source:
    """Which model, where and how it runs.

    `model` is a hub id, of `revision`, or a folder. `device` and `dtype` are as those of the
    transformers engine, `max_batch` answers are read at once, fewer where memory is too small for them.
    Nothing is cut off: an answer over `max_length` tokens (None: the limit of model and tokenizer) is a
    Permanent error. `architecture` replaces the fields of the model's config.json that FLOPs are counted
    from.
    """

    model: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_batch: int = 16
    max_length: int | None = None
    architecture: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise BadInput where no model could be run so."""
        loading.check_placement("reward", self.device, self.dtype)
        for name, value in {"max_batch": self.max_batch, "max_length": self.max_length}.items():
            if value is not None and value < 1:
                raise BadInput(f"reward.{name}={value} must be at least 1")
        check_revision(self.revision, "reward")
        loading.check_model(self.model, "reward")

    def shape(self, *, output_head: bool) -> Architecture:
        """What FLOPs are counted from."""
        config = self.architecture or model_config(self.model, self.revision, "reward")
        try:
            return architecture_of(config, output_head=output_head)
        except BadInput as error:
            raise BadInput(f"reward: {error} (reward.architecture)") from error

    def fingerprint(self) -> dict[str, Any]:
        """The content of the folder, or hub id and revision; the number format where one is asked for."""
        folder = Path(self.model).expanduser()
        of_format = {} if self.dtype == "auto" else {"dtype": self.dtype}
        if folder.is_dir():
            return {"model": folder_digest(folder), **of_format}
        return {"model": self.model, "revision": self.revision, **of_format}


class Reader(Protocol):
    """Makes rewards of what a model says about chats."""

    def encode(self, prompt: str, text: str) -> Any:
        """What is read for a pair of prompt and answer: an object with the token ids as `ids`."""
        ...

    def rewards(self, chats: Sequence[Any]) -> list[float]:
        """The reward of each, in one forward pass or several."""
        ...


class ModelReward:
    """A reward by a model that reads the problem and the answer; loaded for the first score.

    `load` gives a reader with its model and tokenizer. Raises BadInput for a source that cannot be run.
    """

    def __init__(
        self,
        source: Source,
        load: Callable[[Source], tuple[Reader, Any, Any]],
        *,
        output_head: bool = False,
        range: Range | None = None,
    ) -> None:
        source.check()
        self.shape: Architecture | None = source.shape(output_head=output_head)
        self.range = range
        self._source = source
        self._load = load
        self._loaded: tuple[Reader, Any, float, int] | None = None
        self._batcher = Batcher(self._score, source.max_batch, order=lambda pair: len(pair[0]) + len(pair[1]))
        self._ground: Ground | None = None
        self._seat = "reward"
        self._halved = False

    def join(self, ground: Ground, seat: str = "reward") -> None:
        """Be placed together with the agents, under the name `seat`, where no device is named."""
        if self._source.device == "auto":
            self._ground, self._seat = ground, seat
            ground.add(self._models)

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; its tokens are all that the model read, padding left out."""
        result = await self._batcher.submit((problem.prompt, text))
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        """End the thread and free the model."""
        await self._batcher.close()
        self._loaded = None

    def _score(self, pairs: list[tuple[str, str]]) -> list[Score | Unavailable]:
        loading.import_libraries()
        if self._loaded is None:
            self._loaded = self._open()
        reader, device, window, known = self._loaded
        started = time.perf_counter()
        with loading.ENVIRONMENT:
            chats = [reader.encode(prompt, text) for prompt, text in pairs]
        for chat in chats:
            checkpoints.check_tokens(chat.ids, known, self._source.model, "reward")
        fitting = [chat for chat in chats if len(chat.ids) <= window]
        rewards = iter(self._read(reader, fitting, device) if fitting else [])
        seconds = (time.perf_counter() - started) / max(1, len(fitting))
        return [
            self._result(next(rewards), len(chat.ids), seconds)
            if len(chat.ids) <= window
            else too_long(self._source.model, len(chat.ids), window)
            for chat in chats
        ]

    def _read(self, reader: Reader, chats: Sequence[Any], device: Any) -> list[float | Unavailable]:
        """The reward of each; what memory is too small for is read in halves, down to one answer alone."""
        import torch

        try:
            return [*reader.rewards(chats)]
        except torch.OutOfMemoryError:
            pass  # nothing holds on to it, as its cause would, and with it to the memory of the step
        loading.free_memory()
        if len(chats) == 1:
            return [
                Unavailable(
                    f"reward: {device} is out of memory with one answer of {len(chats[0].ids)} tokens alone. "
                    f"Free memory there, give reward.dtype=bfloat16 or another reward.device, or lower "
                    f"ensemble.sampling.max_tokens"
                )
            ]
        if not self._halved:
            self._halved = True
            log.warning(
                "reward: %s is out of memory with %d answers at once, which are read in halves; a lower "
                "reward.max_batch saves the attempts",
                device,
                len(chats),
            )
        half = len(chats) // 2
        return [*self._read(reader, chats[:half], device), *self._read(reader, chats[half:], device)]

    def _models(self) -> list[Model]:
        """What has to be placed."""
        source = self._source
        weights = weights_of(source.model, source.revision, "reward", dtype=source.dtype)
        return [Model(self._seat, weights, sleeps=False, device=f"{self._seat}.device")]

    def _open(self) -> tuple[Reader, Any, float, int]:
        """Load the model to its place."""
        import torch

        plan = self._ground.plan() if self._ground is not None else None
        source, gpus = self._source, plan.seats[self._seat].gpus if plan is not None else ()
        if gpus:
            source = replace(source, device=f"cuda:{gpus[0]}")
        with self._ground.loading(gpus) if self._ground is not None and gpus else nullcontext():
            reader, model, tokenizer = self._load(source)
        torch.set_num_threads(loading.threads_for(model))  # of this thread, which runs no other model
        window = _window(source.max_length, model.config, tokenizer)
        return reader, model.device, window, checkpoints.embeddings_of(model)

    def _result(self, reward: float | Unavailable, tokens: int, seconds: float) -> Score | Unavailable:
        if isinstance(reward, Unavailable):
            return reward
        if math.isfinite(reward):
            return Score(round(reward, DECIMALS), tokens, seconds)
        return Permanent(
            f"reward: {self._source.model!r} gave {reward} for an answer of {tokens} tokens. Check its "
            f"weights, or try reward.dtype=float32"
        )


def too_long(model: str, tokens: int, window: float) -> Permanent:
    """The error for an answer that a reward model cannot read."""
    return Permanent(
        f"reward: problem and answer have {tokens} tokens, and {model!r} reads at most {window:.0f}. "
        f"Lower ensemble.sampling.max_tokens, or choose a reward with a longer window"
    )


def precise(values: torch.Tensor) -> torch.Tensor:
    """The values in float32 at least."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def load(source: Source, family: str | type, *, chat: bool = True) -> tuple[Any, Any]:
    """Tokenizer and model.

    `family` is the class of transformers to load it with, but for the models that `rewards.architectures`
    has. The tokenizer must have a template where it is for `chat`.
    """
    tokenizer = loading.load_tokenizer(source.model, source.revision, "reward", chat=chat)
    from toa_exp.rewards.architectures import PUBLISHED

    names = model_config(source.model, source.revision, "reward").get("architectures") or []
    kind: str | type = next((PUBLISHED[name] for name in names if name in PUBLISHED), family)
    place = loading.device_of(source.device, "reward.device")
    made = loading.load_model(kind, source.model, source.revision, place, source.dtype, "reward")
    checkpoints.check_vocabulary(tokenizer, made, source.model, "reward")
    return tokenizer, made


def padded(chats: Sequence[Sequence[int]], device: Any) -> dict[str, torch.Tensor]:
    """Token ids, padded on the right, which no causal model sees, and their attention mask."""
    import torch

    width = max(map(len, chats))
    ids = torch.tensor([[*chat, *[0] * (width - len(chat))] for chat in chats], device=device)
    mask = torch.tensor([[1] * len(chat) + [0] * (width - len(chat)) for chat in chats], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def _window(max_length: int | None, config: Any, tokenizer: Any) -> float:
    """The most tokens that are read; raises BadInput for a `max_length` that the model cannot read."""
    window = loading.window_of(config) or math.inf
    if max_length is None:
        return min(window, float(tokenizer.model_max_length))
    if max_length > window:
        raise BadInput(f"reward.max_length={max_length} is over the model's window of {window} tokens")
    return max_length
