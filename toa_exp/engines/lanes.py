"""The models that the transformers engine has in one place, and the thread that decodes with them."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toa_exp.core import Usage
from toa_exp.draws import Draw, Sample
from toa_exp.engines import checkpoints, loading
from toa_exp.engines.precedence import Precedence
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Permanent, Unavailable

if TYPE_CHECKING:
    from toa_exp.engines.decoding import Decoder, Row

log = logging.getLogger(__name__)

_Key = tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Ask:
    """A draw that somebody waits for, asked for as the `number`-th."""

    draw: Draw
    agent: Agent
    number: int
    future: Future[Sample] = field(default_factory=Future)

    @property
    def whose(self) -> str:
        """What errors call the agent."""
        return f"agent {self.agent.name!r}"

    def answer(self, result: Sample | Exception) -> None:
        """Hand over what came of it."""
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


class Lanes:
    """Models in memory by `key`, each made by `load` the first time that it is asked for.

    One thread works for all of them, those of a GPU or of the CPU; it runs from the first request on.
    """

    def __init__(self, key: Callable[[Agent], _Key], load: Callable[[Agent], Lane]) -> None:
        self._key = key
        self._load = load
        self._lanes: dict[_Key, Lane | BadInput] = {}
        self._failed: dict[_Key, Unavailable] = {}
        self._inbox: queue.SimpleQueue[_Ask | _Move | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asked = 0
        self._precedence = Precedence()

    async def sample(self, draw: Draw, agent: Agent) -> Sample:
        """The sample of a draw. Raises what loading its model raises, and Unavailable once closed."""
        self._asked += 1
        ask = _Ask(draw, agent, self._asked)
        self._put(ask)
        return await asyncio.wrap_future(ask.future)

    async def move(self, agent: Agent, *, load: bool) -> None:
        """Have an agent's model in memory, or no longer."""
        move = _Move(agent, load)
        self._put(move)
        await asyncio.wrap_future(move.future)

    async def close(self) -> None:
        """End the thread after the step at work, and free the models."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(thread.join)

    def _put(self, item: _Ask | _Move) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="transformers engine", daemon=True)
            self._thread.start()
        self._inbox.put(item)

    def _work(self) -> None:
        """The thread: takes in what is asked for and lets a model write a token."""
        try:
            while self._take_in(wait=not self._step()):
                pass
        finally:
            closed = Unavailable("the engine was closed before the draw was done; run again to resume")
            lanes = [lane for lane in self._lanes.values() if isinstance(lane, Lane)]
            left = [ask for lane in lanes for ask in lane.asks.values()]
            while not self._inbox.empty():
                item = self._inbox.get()
                if isinstance(item, _Ask):
                    left.append(item)
                elif item is not None and item.future.set_running_or_notify_cancel():
                    item.future.set_exception(closed)
            for ask in left:
                ask.answer(closed)
            self._lanes = {}

    def _step(self) -> bool:
        """Let one model write a token; False where none has anything to do.

        The thread itself holds none of them, so that one that is dropped is gone at once.
        """
        at_work = [lane for lane in self._lanes.values() if isinstance(lane, Lane) and lane.demand]
        if at_work:
            for tokens in self._precedence.choose(at_work).step():
                self._precedence.finished(tokens)
        return bool(at_work)

    def _take_in(self, *, wait: bool) -> bool:
        """Give every ask of the inbox to its model; `wait` for the first. False once closed."""
        self._failed = {}  # what fails now is told to all who wait by then; the next one tries again
        while True:
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if item is None:
                return False
            wait = False
            if isinstance(item, _Move):
                self._carry_out(item)
                continue
            try:
                self._lane(item.agent).add(item)
            except Exception as error:  # whatever it is, who asked must be told, and the thread go on
                item.answer(error)

    def _carry_out(self, move: _Move) -> None:
        if not move.future.set_running_or_notify_cancel():
            return
        try:
            if move.load:
                self._lane(move.agent)
            else:
                self._lanes.pop(self._key(move.agent), None)
                loading.free_memory()
        except Exception as error:  # as for an ask
            move.future.set_exception(error)
        else:
            move.future.set_result(None)

    def _lane(self, agent: Agent) -> Lane:
        """The lane of a model, which is loaded the first time it is asked for."""
        key = self._key(agent)
        if key in self._failed:
            raise self._failed[key]
        lane = self._lanes.get(key)
        if lane is None:
            try:
                lane = self._load(agent)
            except BadInput as error:
                lane = error
            except Unavailable as error:
                self._failed[key] = error
                raise
            self._lanes[key] = lane
        if isinstance(lane, BadInput):
            raise lane
        return lane


class Lane:
    """A model with its batch."""

    def __init__(self, agent: Agent, device: str, dtype: str, **limits: int) -> None:
        loading.import_libraries()
        from toa_exp.engines.decoding import Decoder

        whose = f"agent {agent.name!r}"
        self._tokenizer = loading.load_tokenizer(agent.model, agent.revision, whose)
        place = loading.device_of(device, "engine.device")
        model = loading.load_model("AutoModelForCausalLM", agent.model, agent.revision, place, dtype, whose)
        checkpoints.check_vocabulary(self._tokenizer, model, agent.model, whose)
        self._known = checkpoints.embeddings_of(model)
        self._stop = loading.stop_tokens(model.generation_config, self._tokenizer)
        self._window = loading.window_of(model.config)
        self._threads = loading.threads_for(model)
        self._decoder: Decoder = Decoder(model, self._stop, **limits)
        self.asks: dict[Row, _Ask] = {}

    @property
    def demand(self) -> int:
        """Rows that the next step can be about."""
        return self._decoder.demand

    @property
    def oldest(self) -> int:
        """Number of the ask that has waited longest. There must be one."""
        return next(iter(self.asks.values())).number

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
        temperature, top_p = float(sampling["temperature"]), float(sampling["top_p"])
        row = Row(prompt, limit, temperature, top_p, ask.draw.sampling_seed)
        self.asks[row] = ask
        self._decoder.add(row)

    def step(self) -> list[int]:
        """Write one token in every row, and answer those who wait for rows that are done.

        Returns the tokens that each of these has.
        """
        import torch

        torch.set_num_threads(self._threads)
        try:
            return self._answer(self._decoder.step())
        except Exception as error:  # whatever it is, all who wait for a row must be told
            done = self._answer(self._decoder.collect())
            if isinstance(error, torch.OutOfMemoryError):
                self._retreat()
            else:
                self._fail(error)
        loading.free_memory()  # after the error, which holds the memory of the step
        return done

    def _answer(self, done: Sequence[Row]) -> list[int]:
        """Hand over rows that are done; returns the tokens of each."""
        for row in done:
            ask = self.asks.pop(row)
            ask.answer(self._result(ask, row))
        return [len(row.tokens) for row in done]

    def _retreat(self) -> None:
        """Go on with half as many tokens after a step that memory was too small for; a row alone fails."""
        rows, device = self._decoder.rows, self._decoder.device
        if len(rows) == 1:
            self._fail(
                Unavailable(
                    f"{device} is out of memory with one draw alone, of {len(rows[0].prompt)} tokens and "
                    f"{rows[0].limit} to write; give engine.residents=1, lower ensemble.sampling.max_tokens, "
                    f"or free memory there"
                )
            )
            return
        log.warning(
            "%s: %s is out of memory with %d draws at once, which are begun anew, half as many tokens at a "
            "time; a lower engine.max_batch_tokens saves the attempts",
            self.asks[rows[0]].whose,
            device,
            len(rows),
        )
        self._decoder.retreat()

    def _fail(self, error: Exception) -> None:
        """Tell those whose rows are in the batch."""
        for row in self._decoder.clear():
            self.asks.pop(row).answer(error)

    def _result(self, ask: _Ask, row: Row) -> Sample | Exception:
        if row.broken:
            return Permanent(
                f"{ask.whose}: {ask.agent.model!r} gave no probabilities (NaN or infinite logits) for "
                f"token {len(row.tokens)}. Check its weights, or try options.dtype=float32"
            )
        usage = Usage(len(row.prompt), len(row.tokens))
        tokens = row.tokens[:-1] if row.tokens[-1] in self._stop else row.tokens
        try:
            return Sample(loading.text_of(self._tokenizer, tokens), usage, row.seconds)
        except Exception as error:  # whatever it is, who asked must be told, and the thread go on
            return error
