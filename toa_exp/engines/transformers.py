"""The embedded engine: causal language models run by Hugging Face transformers in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from typing import Any

from toa_exp.aio import Once
from toa_exp.draws import Draw, Sample
from toa_exp.engines import loading
from toa_exp.engines.gpus import Ground
from toa_exp.engines.lanes import Lane, Lanes
from toa_exp.engines.residents import Weights, at_once
from toa_exp.engines.seats import Model
from toa_exp.engines.sizes import size_of
from toa_exp.engines.turns import Turns, check_patience, check_residents
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose

log = logging.getLogger(__name__)

_OPTIONS = ["dtype"]


class Transformers:
    """Engine of any causal language model of the hub, or in a folder, with a chat template.

    Every model runs once, however many agents use it, on `device`: "auto" (the GPUs that there are, each
    model on one of them, else the CPU), "cpu", "cuda" or "cuda:<index>". `dtype` is "auto" (float32 on a
    CPU, the checkpoint's own on CUDA), "float32", "bfloat16" or "float16"; an agent's `options.dtype`
    overrides it. Up to `max_batch` draws of a model are decoded together and hold `max_batch_tokens`
    tokens at most, padding and what may still be written included. One thread a GPU decodes, for several
    models by turns; see `engines.precedence`. `residents` models of a GPU (or of the CPU) are in memory at
    once and take turns, "auto" for as many as fit with room for their caches: of a GPU, each with its part
    of `max_batch_tokens`; see `engines.turns`, also for `patience`. In float32 the text of a draw depends on
    nothing but the draw, in bfloat16 and float16 rounding may let it depend on its batch.

    `sample` raises BadInput for a model that cannot be used or does not fit, Unavailable where the device
    is out of memory, and Permanent where a model gives no probabilities.
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
        self._lanes: dict[int | None, Lanes] = {}  # by GPU, None for all that was not placed
        self._first = {self._key(agent): name for name, agent in reversed(list(agents.items()))}
        self._residents = check_residents(residents)
        self._patience = check_patience(patience)
        self._opened = Once(lambda: asyncio.to_thread(self._open))
        self._turns: dict[str, Turns] = {}
        self._gpus: dict[str, int] = {}
        self._seat: str | None = None
        self.ground: Ground | None = None
        if device == "auto":
            self.ground = Ground(residents=self._residents)
            self.join(self.ground)

    @staticmethod
    def deciding(agent: Agent, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What has a say in an agent's samples, where the engine has these fields of its YAML."""
        dtype = agent.options.get("dtype", fields.get("dtype", "auto"))
        return {} if dtype == "auto" else {"dtype": dtype}

    def join(self, ground: Ground, seat: str | None = None) -> None:
        """Be placed together with what else is on `ground`, where no device is named.

        `residents` must be the same for all; in what else is used of the GPUs it follows the others.
        `seat` is the name of a reward's only model, which stays there, while agents may take turns.
        """
        if self.ground is not None:
            self.ground, self._seat = ground, seat
            whose = f"engine=transformers ({seat or 'agents ' + ', '.join(self.agents)})"
            ground.add(self.models, whose, **({} if seat else {"residents": self._residents}))

    def models(self) -> list[Model]:
        """What has to be placed on GPUs, by the first agent of each; nothing where a size is not known."""
        try:
            return [self._model(key, name) for key, name in self._first.items()]
        except BadInput as error:
            log.warning("what the agents take is not known, so that all are loaded at once: %s", error)
            return []

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw; its seconds are its share of every step it took part in."""
        await self._opened.get()
        agent = self.agents[draw.request.agent]
        async with self._turn(agent):
            return await self._place(agent).sample(draw, agent)

    async def close(self) -> None:
        """End the threads after the step at work, and free the models."""
        await self._opened.end()
        async with AsyncExitStack() as held:
            for lanes in self._lanes.values():
                held.push_async_callback(lanes.close)
            for turns in set(self._turns.values()):
                held.push_async_callback(turns.close)

    def report(self) -> list[str]:
        """What there is to say of time sharing."""
        return [turns.report() for turns in dict.fromkeys(self._turns.values())]

    def _open(self) -> None:
        """Decide where the models are, and which of them take turns."""
        try:
            plan = None if self.ground is None else self.ground.plan()
        except BadInput as error:
            raise BadInput(
                f"{error}; or engine=vllm, which quantises a model or spreads it over GPUs"
            ) from None
        names = [name for name in self.agents if name in self._first.values()]
        if plan is not None and plan.seats.keys() >= {self._seat or name for name in names}:
            self._gpus = {name: plan.seats[self._seat or name].gpus[0] for name in names}
            agents = set() if self._seat else set(names)
            stages = [(stage.names, stage.awake) for stage in plan.stages if set(stage.names) & agents]
        else:
            stages = [(tuple(names), self._residents or at_once(self._weights(), self._device))]
        self._turns = {}
        for members, awake in stages:
            if awake < len(members):
                turns = Turns(members, awake, self._wake, self._sleep, patience=self._patience)
                self._turns |= dict.fromkeys(members, turns)

    def _weights(self) -> list[Weights]:
        """Every model, to be weighed."""
        return [Weights.of_agent(self.agents[name], key[2]) for key, name in self._first.items()]

    def _model(self, key: tuple[str, ...], name: str) -> Model:
        """What a model takes of a GPU. Raises BadInput where that is not known."""
        agent = self.agents[name]
        size = size_of(agent.model, agent.revision, f"agent {name!r}", dtype=key[2], own=True)
        tokens = self._limits["max_batch_tokens"]
        if size.window is not None:
            tokens = min(tokens, self._limits["max_batch"] * size.window)
        return Model(
            self._seat or name,
            size.weights,
            wish=size.cache * tokens // len(self._first),
            asleep=0,
            quantised=size.quantised,
            sleeps=self._seat is None,
            device=None if self._seat is None else f"{self._seat}.engine.device",
        )

    def _turn(self, agent: Agent) -> AbstractAsyncContextManager[None]:
        turns = self._turns.get(self._first[self._key(agent)])
        return nullcontext() if turns is None else turns.turn(self._first[self._key(agent)])

    async def _wake(self, name: str) -> None:
        await self._place(self.agents[name]).move(self.agents[name], load=True)

    async def _sleep(self, name: str) -> None:
        await self._place(self.agents[name]).move(self.agents[name], load=False)

    def _key(self, agent: Agent) -> tuple[str, ...]:
        """What tells the models apart."""
        return agent.model, str(agent.revision), str(agent.options.get("dtype", self._dtype))

    def _gpu(self, agent: Agent) -> int | None:
        """The GPU that its model was placed on."""
        return self._gpus.get(self._first[self._key(agent)])

    def _place(self, agent: Agent) -> Lanes:
        """The models of the same GPU, and their thread."""
        gpu = self._gpu(agent)
        if gpu not in self._lanes:
            self._lanes[gpu] = Lanes(self._key, self._load)
        return self._lanes[gpu]

    def _load(self, agent: Agent) -> Lane:
        """A model in memory."""
        key, gpu = self._key(agent), self._gpu(agent)
        if gpu is None or self.ground is None:
            return Lane(agent, self._device, key[2], **self._limits)
        with self.ground.loading([gpu]):
            return Lane(agent, f"cuda:{gpu}", key[2], **self._limits)


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
