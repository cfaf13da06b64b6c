"""The embedded engine: causal language models run by Hugging Face transformers in this process."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from toa_exp.core import Usage
from toa_exp.draws import Draw, Sample
from toa_exp.engines import checkpoints, loading
from toa_exp.engines.turns import Turns, check_residents
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Permanent, Unavailable, choose

if TYPE_CHECKING:
    from toa_exp.engines.decoding import Decoder, Row

_OPTIONS = ["dtype"]


@dataclass(slots=True, eq=False)
class _Ask:
    """A draw that somebody waits for."""

    draw: Draw
    agent: Agent
    future: Future[Sample] = field(default_factory=Future)

    @property
    def whose(self) -> str:
        return f"agent {self.agent.name!r}"

    def answer(self, result: Sample | Exception) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, Sample):
            self.future.set_result(result)
        else:
            self.future.set_exception(result)


@dataclass(slots=True, eq=False)
class _Move:
    """A model to be loaded, or to be dropped, which somebody waits for."""

    agent: Agent
    load: bool
    future: Future[None] = field(default_factory=Future)


class Transformers:
    """Engine of any causal language model of the hub, or in a folder, with a chat template.

    Every model runs once, however many agents use it, on one `device`: "auto" (CUDA where there is
    any), "cpu", "cuda" or "cuda:<index>". `dtype` is "auto" (float32 on a CPU, the checkpoint's own
    on CUDA), "float32", "bfloat16" or "float16"; an agent's `options.dtype` overrides it. Up to
    `max_batch` draws of a model are decoded together and hold `max_batch_tokens` tokens at most,
    padding and what may still be written included. One thread decodes; of several models the one
    that has most to do writes the next token. `residents` models are in memory at once and take turns,
    "auto" for all of them; see `engines.turns`, also for `patience`. In float32 the text of a draw
    depends on nothing but the draw, in bfloat16 and float16 rounding may let it depend on its batch.

    `sample` raises BadInput for a model that cannot be used, Unavailable where the device is out of
    memory, and Permanent where a model gives no probabilities.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 256,
        max_batch_tokens: int = 131072,
        residents: str | int = "auto",
        patience: float = 10.0,
    ) -> None:
        loading.check_placement("engine", device, dtype)
        for name, value in {"max_batch": max_batch, "max_batch_tokens": max_batch_tokens}.items():
            if value < 1:
                raise BadInput(f"engine.{name}={value} must be at least 1")
        for agent in agents.values():
            _check(agent)
        self.agents = agents
        self._device = device
        self._dtype = dtype
        self._limits = {"max_batch": max_batch, "max_batch_tokens": max_batch_tokens}
        self._inbox: queue.SimpleQueue[_Ask | _Move | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._first = {self._key(agent): name for name, agent in reversed(list(agents.items()))}
        awake = check_residents(residents)
        self._turns: Turns | None = None
        if awake is not None and awake < len(self._first):
            names = [name for name in agents if name in self._first.values()]
            self._turns = Turns(names, awake, self._wake, self._sleep, patience=patience)

    @staticmethod
    def deciding(agent: Agent, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What has a say in an agent's samples, where the engine has these fields of its YAML."""
        dtype = agent.options.get("dtype", fields.get("dtype", "auto"))
        return {} if dtype == "auto" else {"dtype": dtype}

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw; its seconds are its share of every step it took part in."""
        ask = _Ask(draw, self.agents[draw.request.agent])
        async with self._turn(ask.agent):
            self._put(ask)
            return await asyncio.wrap_future(ask.future)

    async def close(self) -> None:
        """End the thread after the step at work, and free the models."""
        if self._turns is not None:
            await self._turns.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(thread.join)

    def report(self) -> list[str]:
        """What there is to say of time sharing."""
        return [] if self._turns is None else [self._turns.report()]

    def _turn(self, agent: Agent) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._turns is None else self._turns.turn(self._first[self._key(agent)])

    async def _wake(self, name: str) -> None:
        await self._move(_Move(self.agents[name], load=True))

    async def _sleep(self, name: str) -> None:
        await self._move(_Move(self.agents[name], load=False))

    async def _move(self, move: _Move) -> None:
        self._put(move)
        await asyncio.wrap_future(move.future)

    def _put(self, item: _Ask | _Move) -> None:
        """Hand something to the thread, which runs from the first time on."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="transformers engine", daemon=True)
            self._thread.start()
        self._inbox.put(item)

    def _key(self, agent: Agent) -> tuple[str, ...]:
        """What tells the models apart."""
        return agent.model, str(agent.revision), str(agent.options.get("dtype", self._dtype))

    def _work(self) -> None:
        """The thread: takes in what is asked for and lets the busiest model write a token."""
        lanes: dict[tuple[str, ...], _Lane | BadInput] = {}
        try:
            while True:
                at_work = [lane for lane in lanes.values() if isinstance(lane, _Lane) and lane.demand]
                if not self._take_in(lanes, wait=not at_work):
                    return
                busiest = max(at_work, key=lambda lane: lane.demand, default=None)
                if busiest is not None:
                    busiest.step()
        finally:
            closed = Unavailable("the engine was closed before the draw was done; run again to resume")
            left = [ask for lane in lanes.values() if isinstance(lane, _Lane) for ask in lane.asks.values()]
            while not self._inbox.empty():
                item = self._inbox.get()
                if isinstance(item, _Ask):
                    left.append(item)
                elif item is not None and item.future.set_running_or_notify_cancel():
                    item.future.set_exception(closed)
            for ask in left:
                ask.answer(closed)

    def _take_in(self, lanes: dict[tuple[str, ...], _Lane | BadInput], *, wait: bool) -> bool:
        """Give every ask of the inbox to its model; `wait` for the first. False once closed."""
        while True:
            try:
                ask = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if ask is None:
                return False
            wait = False
            if isinstance(ask, _Move):
                self._carry_out(lanes, ask)
                continue
            try:
                self._lane(lanes, ask.agent).add(ask)
            except Exception as error:  # whatever it is, who asked must be told, and the thread go on
                ask.answer(error)

    def _carry_out(self, lanes: dict[tuple[str, ...], _Lane | BadInput], move: _Move) -> None:
        if not move.future.set_running_or_notify_cancel():
            return
        try:
            if move.load:
                self._lane(lanes, move.agent)
            else:
                lanes.pop(self._key(move.agent), None)
                loading.free_memory()
        except Exception as error:  # as for an ask
            move.future.set_exception(error)
        else:
            move.future.set_result(None)

    def _lane(self, lanes: dict[tuple[str, ...], _Lane | BadInput], agent: Agent) -> _Lane:
        """The lane of a model, which is loaded the first time it is asked for."""
        key = self._key(agent)
        lane = lanes.get(key)
        if lane is None:
            try:
                lane = _Lane(agent, self._device, key[2], **self._limits)
            except BadInput as error:
                lane = error
            lanes[key] = lane
        if isinstance(lane, BadInput):
            raise lane
        return lane


class _Lane:
    """A model with its batch."""

    def __init__(self, agent: Agent, device: str, dtype: str, **limits: int) -> None:
        loading.import_libraries()
        from toa_exp.engines.decoding import Decoder

        whose = f"agent {agent.name!r}"
        self._tokenizer = loading.load_tokenizer(agent.model, agent.revision, whose)
        model = loading.load_model(
            "AutoModelForCausalLM", agent.model, agent.revision, loading.device_of(device), dtype, whose
        )
        checkpoints.check_vocabulary(self._tokenizer, model, agent.model, whose)
        self._known = checkpoints.embeddings_of(model)
        self._stop = loading.stop_tokens(model.generation_config, self._tokenizer)
        self._window = loading.window_of(model.config)
        self._threads = loading.threads_for(model)
        self._decoder: Decoder = Decoder(model, self._stop, **limits)
        self.asks: dict[Row, _Ask] = {}

    @property
    def demand(self) -> int:
        return self._decoder.demand

    def add(self, ask: _Ask) -> None:
        """Queue a draw, or answer that its prompt does not fit into the model's window."""
        from toa_exp.engines.decoding import Row

        prompt = loading.token_ids(self._tokenizer, ask.draw.messages, ask.whose, reply=True)
        checkpoints.check_tokens(prompt, self._known, ask.agent.model, ask.whose)
        sampling = ask.agent.sampling
        limit = int(sampling["max_tokens"])
        if self._window is not None:
            limit = min(limit, self._window - len(prompt))
        if limit < 1:
            ask.answer(Sample("", Usage(0, 0), 0.0, "context_window"))
            return
        noise = Random(ask.draw.sampling_seed)
        row = Row(prompt, limit, float(sampling["temperature"]), float(sampling["top_p"]), noise)
        self.asks[row] = ask
        self._decoder.add(row)

    def step(self) -> None:
        """Write one token in every row, and answer those who wait for a row that is done."""
        import torch

        torch.set_num_threads(self._threads)
        try:
            done = self._decoder.step()
        except torch.OutOfMemoryError as error:
            full = Unavailable(
                f"{self._decoder.device} is out of memory with {len(self._decoder.rows)} draws at once; "
                f"lower engine.max_batch or engine.max_batch_tokens"
            )
            full.__cause__ = error
            self._fail(full)
            torch.cuda.empty_cache()
        except Exception as error:  # whatever it is, all who wait for a row must be told
            self._fail(error)
        else:
            for row in done:
                ask = self.asks.pop(row)
                ask.answer(self._result(ask, row))

    def _fail(self, error: Exception) -> None:
        """Tell all but those still waiting: also rows that were done before the fault in this step."""
        self._decoder.clear()
        waiting = set(self._decoder.waiting)
        for row in [row for row in self.asks if row not in waiting]:
            self.asks.pop(row).answer(error)

    def _result(self, ask: _Ask, row: Row) -> Sample | Permanent:
        if row.broken:
            return Permanent(
                f"{ask.whose}: {ask.agent.model!r} gave no probabilities (NaN or infinite logits) for "
                f"token {len(row.tokens)}. Check its weights, or try options.dtype=float32"
            )
        usage = Usage(len(row.prompt), len(row.tokens))
        tokens = row.tokens[:-1] if row.tokens[-1] in self._stop else row.tokens
        return Sample(loading.text_of(self._tokenizer, tokens), usage, row.seconds)


def _check(agent: Agent) -> None:
    """Raise BadInput for an agent that cannot be run here, as far as no model is needed to tell."""
    whose = f"agent {agent.name!r}"
    if agent.simulated:
        raise BadInput(f"{whose} has model 'simulated'; choose engine=simulator, or give it a model")
    for name in agent.options:
        if name not in _OPTIONS:
            raise choose(f"option of {whose} with engine=transformers:", name, _OPTIONS)
    loading.check_placement(f"{whose}: options", "auto", str(agent.options.get("dtype", "auto")))
    loading.check_model(agent.model, whose)
    agent.check_sampling()
    if "extra_body" in agent.sampling:
        raise BadInput(f"{whose} has sampling.extra_body, which only engine=openai can send; leave it out")
