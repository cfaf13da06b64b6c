"""A stand-in for vLLM, which keeps what it was told."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from toa_exp.engines import vllm_process


class DeadError(Exception):
    pass


class ClientError(Exception):
    pass


@dataclass
class FakeArguments:
    model: str
    revision: str | None
    tokenizer_revision: str | None
    dtype: str
    quantization: str | None
    max_model_len: int | None
    tensor_parallel_size: int
    max_num_seqs: int
    enable_prefix_caching: bool
    trust_remote_code: bool
    disable_log_stats: bool
    enable_log_requests: bool
    enable_sleep_mode: bool = False
    device_ids: list[int] | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_dtype: str = "auto"
    enforce_eager: bool = False
    enable_chunked_prefill: bool | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def create_engine_config(self) -> "FakeArguments":
        return self


class FakeLLM:
    """Answers with the letter of its model, and keeps what it was told."""

    made: ClassVar[list["FakeLLM"]] = []
    failing: ClassVar[list[Exception]] = []

    def __init__(self, arguments: FakeArguments) -> None:
        self.arguments = arguments
        self.errored = False
        self.told: list[Any] = []
        self.seeds: list[int] = []
        self.output_handler: asyncio.Task[None] | None = None  # passes answers on
        self.model_config = SimpleNamespace(max_model_len=arguments.max_model_len or 256)
        self.made.append(self)

    @classmethod
    def from_vllm_config(cls, arguments: FakeArguments, *, disable_log_stats: bool) -> "FakeLLM":
        if cls.failing:
            raise cls.failing.pop()
        return cls(arguments)

    async def generate(self, prompt: Sequence[int], params: Any, number: str) -> AsyncIterator[Any]:
        if self.errored:
            raise DeadError
        assert "asleep" not in self.told[-1:]
        if self.output_handler is None:
            self.output_handler = asyncio.create_task(self._pass_on())
        await asyncio.sleep(0)
        self.seeds.append(params.seed)
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[6, 7, 1], finish_reason=params.finish)])

    async def sleep(self, level: int, mode: str) -> None:
        assert mode == "wait"
        self.told += [("sleep", level), "asleep"]

    async def wake_up(self, tags: list[str] | None = None) -> None:
        self.told.append(("wake", tags))

    async def collective_rpc(self, method: str) -> None:
        self.told.append(method)

    async def _pass_on(self) -> None:
        await asyncio.Event().wait()

    def shutdown(self, timeout: float) -> None:
        passing = self.output_handler is not None and not self.output_handler.cancelling()
        self.told.append("shut down" + " while answers are passed on" * passing)


class Params(SimpleNamespace):
    finish = "stop"


def install(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """Put it in vLLM's place for a test."""
    modules = {
        "vllm": {"SamplingParams": Params},
        "vllm.inputs": {"tokens_input": lambda prompt: prompt},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY=2)},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": FakeArguments},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.exceptions": {"VLLMClientError": ClientError},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": FakeLLM},
        "vllm.v1.engine.exceptions": {"EngineDeadError": DeadError},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        vllm_process, "Guard", lambda: SimpleNamespace(settled=lambda: None, close=lambda: None)
    )
    monkeypatch.setattr(FakeLLM, "made", [])
    monkeypatch.setattr(FakeLLM, "failing", [])
    return FakeLLM
