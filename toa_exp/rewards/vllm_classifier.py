"""A sequence classifier as reward model, run by vLLM's pooling runner."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from toa_exp.aio import Once
from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.draws import Score
from toa_exp.engines import checkpoints, loading
from toa_exp.engines.gpus import Ground
from toa_exp.engines.seats import Model, Plan
from toa_exp.engines.vllm_process import Process, Recipe
from toa_exp.engines.vllm_settings import Settings
from toa_exp.ensemble import model_config
from toa_exp.errors import BadInput, Permanent
from toa_exp.rewards.base import Range
from toa_exp.rewards.classifier import chat_of, label_of
from toa_exp.rewards.model import DECIMALS, Source, too_long

_NAME = "reward"


class VllmClassifier:
    """The scores of `rewards.classifier.Classifier`, from a process of vLLM's that batches continuously.

    The model is read with its own number of outputs, without the logistic function or softmax that
    vLLM would put behind. `model`, `revision`, `label`, `system`, `range`, `max_length` and `architecture`
    are those of the classifier; the others those of `engines.vllm_settings.Settings`. Beside engine=vllm
    the model is placed on GPUs together with the agents. Its scores agree with the classifier's up to
    rounding, and count as the same.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        label: int | None = None,
        system: str | None = None,
        range: list[float] | None = None,
        max_length: int | None = None,
        architecture: Mapping[str, Any] | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        tensor_parallel_size: int = 1,
        max_num_seqs: int = 256,
        gpu_memory_utilization: float | None = None,
        gpus: list[int] | None = None,
        arguments: dict[str, Any] | None = None,
        task: object = None,
    ) -> None:
        self._source = Source(model, revision, max_length=max_length, architecture=architecture)
        self._source.check()
        self.shape: Architecture | None = self._source.shape(output_head=False)
        self.range = Range.of(range)
        given = {
            "dtype": dtype,
            "quantization": quantization,
            "tensor_parallel_size": tensor_parallel_size,
            "max_num_seqs": max_num_seqs,
            "gpu_memory_utilization": gpu_memory_utilization,
            "gpus": gpus,
            "max_model_len": max_length,
            "arguments": arguments or {},
        }
        self._settings = Settings.of({}, given, "reward", "reward")
        self._label = label
        self._system = system
        self._thread = ThreadPoolExecutor(1)
        self._tokenizer: Any = None
        self._seat = _NAME
        self.ground = Ground()
        self.ground.add(self.models)
        self._process = Once(self._open)

    def join(self, ground: Ground, seat: str = _NAME) -> None:
        """Be placed together with the agents, under the name `seat`."""
        self.ground, self._seat = ground, seat
        ground.add(self.models)

    def models(self) -> list[Model]:
        """What has to be placed."""
        source = self._source
        return [self._settings.model(self._seat, source.model, source.revision, _NAME)]

    def fingerprint(self) -> Mapping[str, Any]:
        """That of the classifier; and what else decides, such as a quantisation of vLLM's."""
        settings = {"label": self._label, "system": self._system}
        given = {name: value for name, value in settings.items() if value is not None}
        made = {k: v for k, v in self._settings.deciding().items() if k != "max_model_len"}
        return {"reward": "classifier", **self._source.fingerprint(), **given, **made}

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; its tokens are all that the model read."""
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._thread, self._read, problem.prompt, text)
        process = await self._process.get()
        window = min(await process.window(), self._tokenizer.model_max_length)
        if len(ids) > window:
            raise too_long(self._source.model, len(ids), window)
        from vllm import PoolingParams  # it is there once the process is

        answer, seconds = await process.encode(ids, PoolingParams(task="classify", use_activation=False))
        outputs = answer.outputs.data.float().flatten().tolist()
        reward = outputs[label_of(self._label, len(outputs), self._source.model)]
        if not math.isfinite(reward):
            raise Permanent(
                f"reward: {self._source.model!r} gave {reward} for an answer of {len(ids)} tokens. Check its "
                f"weights, or try reward.dtype=float32"
            )
        return Score(round(reward, DECIMALS), len(ids), seconds)

    async def close(self) -> None:
        """End the process."""
        self._thread.shutdown()
        if (process := await self._process.end()) is not None:
            await process.close()

    async def _open(self) -> Process:
        """The process, whose place on the GPUs is taken; it starts with the first text."""
        settings, source = self._settings, self._source
        plan = await asyncio.to_thread(self._plan)
        recipe = Recipe(
            _NAME,
            source.model,
            {**settings.engine_arguments(source.model, source.revision), "runner": "pooling"},
            lambda: settings.cpu_arguments(source.model, source.revision, _NAME),
            settings.arguments,
        )
        return Process(recipe, self.ground, None if plan is None else plan.seats[self._seat])

    def _plan(self) -> Plan | None:
        """The plan; raises BadInput for a model that is no plain sequence classifier."""
        loading.import_libraries()
        from toa_exp.rewards.architectures import PUBLISHED

        names = model_config(self._source.model, self._source.revision, _NAME).get("architectures") or []
        for name in names:
            if name in PUBLISHED or not name.endswith("ForSequenceClassification"):
                uses = None if name in PUBLISHED else checkpoints.uses_of(name)
                mend = f"it runs as {uses}" if uses else "choose reward=classifier, or the reward made for it"
                raise BadInput(
                    f"reward: {self._source.model!r} is a {name}, and reward=vllm_classifier runs models "
                    f"ForSequenceClassification; {mend}"
                )
        return self.ground.plan()

    def _read(self, prompt: str, text: str) -> list[int]:
        if self._tokenizer is None:
            self._tokenizer = loading.load_tokenizer(self._source.model, self._source.revision, _NAME)
        return loading.token_ids(self._tokenizer, chat_of(prompt, text, self._system), _NAME, reply=False)
