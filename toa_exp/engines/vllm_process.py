"""A model run by vLLM: one engine in a process of its own, started, put to sleep and restarted here."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toa_exp.aio import Once
from toa_exp.engines import loading
from toa_exp.engines.gpus import Ground
from toa_exp.engines.orphans import Guard
from toa_exp.engines.seats import Seat
from toa_exp.engines.vllm_environment import check_vllm, environment
from toa_exp.errors import BadInput, Unavailable, choose

if TYPE_CHECKING:
    from vllm import PoolingParams, PoolingRequestOutput, RequestOutput, SamplingParams

log = logging.getLogger(__name__)

_SHOWN = 400  # characters of an error
_SHUTDOWN = 3.0  # seconds; an engine has nothing to lose


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to start an engine: vLLM's arguments, those of a CPU, and who it is for.

    `engines` is how many of them share the machine, `level` vLLM's sleep level.
    """

    whose: str
    model: str
    arguments: Mapping[str, Any]
    cpu_arguments: Callable[[], Mapping[str, Any]]
    given: Mapping[str, Any]
    engines: int = 1
    level: int = 1


class Process:
    """A vLLM engine that is started when it is first needed and again after it died.

    `seat` is its place on the GPUs, None where there are none. Its methods raise BadInput where the
    model cannot be run so, and Unavailable where the engine died.
    """

    def __init__(self, recipe: Recipe, ground: Ground, seat: Seat | None) -> None:
        self._recipe = recipe
        self._ground = ground
        self._seat = seat
        self._engine = Once(self._started)
        self._place = asyncio.Lock()  # held from an engine's start until it has ended
        self._ran = False
        self._guard: Guard | None = None
        self._asleep = False
        self._sleeps = False
        self._numbers = itertools.count()
        self._under_way = 0
        self._busy = 0.0
        self._counted = 0.0

    async def window(self) -> int:
        """The most tokens of prompt and answer together."""
        engine = await self._engine.get()
        return int(engine.model_config.max_model_len)

    async def hf_config(self) -> Any:
        """The model's configuration, as transformers has it."""
        engine = await self._engine.get()
        return engine.model_config.hf_config

    async def generate(self, prompt: Sequence[int], params: SamplingParams) -> tuple[RequestOutput, float]:
        """What the model writes after the tokens of a prompt, and its share of the engine's seconds."""
        return await self._ask("generate", prompt, params)

    async def encode(
        self, prompt: Sequence[int], params: PoolingParams
    ) -> tuple[PoolingRequestOutput[Any], float]:
        """What a pooling model makes of tokens, and its share of the engine's seconds."""
        return await self._ask("encode", prompt, params)

    async def wake(self) -> None:
        """Have the weights in place: start the engine, or end its sleep."""
        engine = await self._engine.get()
        if not self._asleep:
            return
        try:
            if self._recipe.level == 1:
                await engine.wake_up()
            else:  # https://docs.vllm.ai/en/latest/features/sleep_mode/
                await engine.wake_up(tags=["weights"])
                await engine.collective_rpc("reload_weights")
                await engine.wake_up(tags=["kv_cache"])
        except Exception as error:  # vLLM's errors have no common root
            await self.close()
            raise Unavailable(f"{self._recipe.whose}: vLLM does not wake up: {error!r}") from error
        self._asleep = False

    async def sleep(self) -> None:
        """Free the memory: on a GPU the process stays and sleeps, on a CPU it ends."""
        engine = self._engine.made
        if engine is None or not self._sleeps:
            await self.close()
            return
        try:
            await engine.sleep(level=self._recipe.level, mode="wait")
            self._asleep = True
        except Exception as error:  # vLLM's errors have no common root
            await self.close()  # whatever it holds is free then
            raise Unavailable(f"{self._recipe.whose}: vLLM does not go to sleep: {error!r}") from error

    async def close(self) -> None:
        """End the process."""
        self._asleep = False
        engine = await self._engine.end()
        if engine is None:
            return
        reader = engine.output_handler
        if reader is not None and not self._under_way:  # else they are told by it
            reader.cancel()  # it would take the end for a fault, and log it
        try:
            await asyncio.to_thread(self._end, engine)
        finally:
            self._place.release()

    async def _ask(self, what: str, prompt: Sequence[int], params: Any) -> tuple[Any, float]:
        from vllm.inputs import tokens_input

        engine = await self._engine.get()
        answer = None
        began = self._clock(0)
        self._clock(1)
        try:
            given = tokens_input(list(prompt))
            async for output in getattr(engine, what)(given, params, str(next(self._numbers))):
                answer = output
        except Exception as error:  # what it means is found out there
            raise await self._reason(engine, error) from error
        finally:
            ended = self._clock(-1)
        if answer is None:
            raise Unavailable(f"{self._recipe.whose}: vLLM ended a request without an answer")
        return answer, ended - began

    def _clock(self, more: int) -> float:
        """Seconds, shared out over the requests under way; of these there are `more` from now on."""
        now = time.monotonic()
        if self._under_way:
            self._busy += (now - self._counted) / self._under_way
        self._counted = now
        self._under_way += more
        return self._busy

    async def _reason(self, engine: Any, error: Exception) -> Exception:
        """What to raise for an error of a request; a dead engine is cleared away."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        whose = self._recipe.whose
        if isinstance(error, EngineDeadError) or engine.errored:
            if self._engine.made is engine:  # else another one's request was first to find out
                await self.close()
            return Unavailable(
                f"{whose}: the vLLM engine of {self._recipe.model!r} died; what it printed says why. It is "
                f"started again; if it was for want of memory, lower options.max_num_seqs or "
                f"options.gpu_memory_utilization"
            )
        if isinstance(error, VLLMClientError | ValueError):
            return BadInput(f"{whose}: vLLM refuses a request to {self._recipe.model!r}: {error}")
        return Unavailable(f"{whose}: vLLM failed a request to {self._recipe.model!r}: {error!r}")

    async def _started(self) -> Any:
        await self._place.acquire()
        try:
            # vLLM keeps the frames that its import is in until the end of the process, and what they hold.
            await asyncio.to_thread(self._import)
            engine = await asyncio.to_thread(self._begin)
        except BaseException:
            self._place.release()
            raise
        self._ran = True
        return engine

    def _import(self) -> None:
        with self._surroundings(), loading.ONE_AT_A_TIME, loading.ENVIRONMENT:  # vLLM sets variables, too
            check_vllm()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Nobody else loads on these GPUs, and vLLM's processes find what they need."""
        with self._ground.loading(self._gpus), environment(self._seat is None, self._recipe.engines):
            yield

    @property
    def _gpus(self) -> tuple[int, ...]:
        return self._seat.gpus if self._seat else ()

    def _begin(self) -> Any:
        """Start the engine; takes seconds to minutes, in a thread."""
        recipe = self._recipe
        with self._surroundings():
            log.info("%s: starting vLLM for %s", recipe.whose, recipe.model)
            started = time.monotonic()
            self._guard = Guard()
            try:
                engine = self._make(self._seat)
            except BadInput:
                self._guard.close()
                raise
            except Exception as error:  # vLLM's errors have no common root
                self._guard.close()
                raise self._failure(error) from error
            self._guard.settled()
            log.info("%s: vLLM is there after %.0f s", recipe.whose, time.monotonic() - started)
            return engine

    def _end(self, engine: Any) -> None:
        """Shut the engine down; nobody starts on its GPUs before its memory is free."""
        with self._ground.loading(self._gpus):
            engine.shutdown(_SHUTDOWN)
            if self._guard is not None:
                self._guard.close()

    def _make(self, seat: Seat | None) -> Any:
        with loading.ONE_AT_A_TIME, loading.ENVIRONMENT:
            engine, config = self._configured(seat)
        return engine.from_vllm_config(config, disable_log_stats=True)

    def _configured(self, seat: Seat | None) -> tuple[Any, Any]:
        """The class of the engine, and what to make it with."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        recipe = self._recipe
        arguments = {**recipe.arguments, "disable_log_stats": True, "enable_log_requests": False}
        if seat is not None:
            arguments |= {"device_ids": list(seat.gpus), "gpu_memory_utilization": seat.share}
            self._sleeps = bool(arguments.get("enable_sleep_mode"))
        elif current_platform.is_cpu():
            arguments |= recipe.cpu_arguments()
            arguments["enable_sleep_mode"] = False
        known = AsyncEngineArgs.__dataclass_fields__
        for name in recipe.given:
            if name not in known:
                raise choose(f"arguments of {recipe.whose} (vLLM's AsyncEngineArgs):", name, list(known))
        return AsyncLLM, AsyncEngineArgs(**arguments | dict(recipe.given)).create_engine_config()

    def _failure(self, error: Exception) -> Exception:
        recipe = self._recipe
        reason = " ".join(str(error).split())[:_SHOWN]
        if self._ran:  # it ran before, so that the model is not to blame
            return Unavailable(f"{recipe.whose}: vLLM does not start again: {reason}")
        return BadInput(
            f"{recipe.whose}: vLLM cannot run {recipe.model!r} ({type(error).__name__}: {reason}). What it "
            f"printed above says why (more of it with VLLM_LOGGING_LEVEL=INFO). Check the model folder or "
            f"hub id, and its options: max_model_len, gpu_memory_utilization, quantization, arguments"
        )
