"""The engine of real runs: vLLM's async engine in the care of this process, one for every model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from toa_exp.aio import Once
from toa_exp.core import Usage
from toa_exp.draws import Draw, Sample
from toa_exp.engines import loading
from toa_exp.engines.admission import Admission
from toa_exp.engines.gpus import Ground
from toa_exp.engines.seats import GIB, Model, Plan
from toa_exp.engines.sizes import main_memory
from toa_exp.engines.turns import Turns, check_patience, check_residents
from toa_exp.engines.vllm_environment import cpu_at_once
from toa_exp.engines.vllm_process import Process, Recipe
from toa_exp.engines.vllm_served import Served
from toa_exp.engines.vllm_settings import Settings, sampling_of
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Unavailable, choose


class Vllm:
    """Engine of language models with a chat template, run by vLLM on GPUs or a CPU.

    The first eight settings are those of `vllm_settings.Settings`; an agent's `options` override them.
    Agents of the same model and settings share its engine. `gpu_memory_utilization` is the
    fraction of every GPU that all models on it take together, and in an agent's options that of its
    model alone. `gpus` are the GPUs to use, "auto" for all that are visible. `residents` is how many
    models of a GPU (or of the CPU) are in memory at once while the others sleep, "auto" for as many as
    fit; see `engines.turns`, also for `patience`. `sleep_level` 1 keeps the weights of sleepers in the
    machine's memory, 2 reads them again.

    Every draw has a seed of its own, so that in float32 its text does not depend on its batch; in 16
    bits it may, through rounding. `sample` raises BadInput for a model or setting that cannot be used
    and Unavailable where an engine died, which is then started again.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        max_num_seqs: int = 256,
        prefix_caching: bool = True,
        arguments: dict[str, Any] | None = None,
        gpu_memory_utilization: float = 0.9,
        gpus: str | list[int] = "auto",
        residents: str | int = "auto",
        patience: float = 10.0,
        sleep_level: int = 1,
    ) -> None:
        if not 0 < gpu_memory_utilization <= 1:
            raise BadInput(f"engine.gpu_memory_utilization={gpu_memory_utilization} is a fraction, up to 1")
        if isinstance(gpus, str) and gpus != "auto":
            raise choose("engine.gpus", gpus, ["auto", "a list of indices"])
        if sleep_level not in (1, 2):
            raise choose("engine.sleep_level", sleep_level, ["1", "2"])
        shared = {
            "dtype": dtype,
            "quantization": quantization,
            "max_model_len": max_model_len,
            "tensor_parallel_size": tensor_parallel_size,
            "max_num_seqs": max_num_seqs,
            "prefix_caching": prefix_caching,
            "arguments": arguments or {},
        }
        self._residents = check_residents(residents)
        self._patience = check_patience(patience)
        self._level = sleep_level
        self._said: list[str] = []
        self._settings = {name: _settings(agent, shared) for name, agent in agents.items()}
        self.agents = {
            name: replace(agent, deciding={**agent.deciding, **self._settings[name].deciding()})
            for name, agent in agents.items()
        }
        self._extra = {name: sampling_of(agent) for name, agent in agents.items()}
        first: dict[str, str] = {}
        self._serving = {
            name: first.setdefault(repr((agent.model, agent.revision, self._settings[name])), name)
            for name, agent in agents.items()
        }
        self._turns = Once(lambda: asyncio.to_thread(self._open))
        self._admission: Admission | None = None
        self._served: dict[str, Served] = {}
        self._terms = {
            "gpus": gpus,
            "gpu_memory_utilization": gpu_memory_utilization,
            "residents": self._residents,
        }
        self.ground = Ground(gpus, gpu_memory_utilization, self._residents)
        self.join(self.ground)

    @staticmethod
    def deciding(agent: Agent, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What has a say in an agent's samples, where the engine has these fields of its YAML."""
        return _settings(agent, Settings.shared(fields)).deciding()

    def join(self, ground: Ground, seat: str | None = None) -> None:
        """Be planned together with what else is on `ground`, whose terms must be the same.

        `seat` is the name of a reward's only model, which stays there, while agents may take turns: it
        has its own `gpus`, and uses of each what the others do where nothing else is asked for.
        """
        self.ground, self._seat = ground, seat
        if seat is None:
            ground.add(self.models, f"engine=vllm (agents {', '.join(self.agents)})", **self._terms)
            return
        utilization = self._terms["gpu_memory_utilization"]
        asked = {} if utilization == Ground().terms[1] else {"gpu_memory_utilization": utilization}
        ground.add(self.models, f"engine=vllm ({seat})", **asked)

    def models(self) -> list[Model]:
        """What has to be placed: every model, under the name of the first agent that uses it."""
        models = [
            self._settings[name].model(
                name, agent.model, agent.revision, f"agent {name!r}", agents=self._sharing(name)
            )
            for name, agent in self._first().items()
        ]
        if self._seat is None:
            return models
        settings = (("++" + self._seat.split(".")[0], *self._seat.split(".")[1:], "options"),)
        gpus: Any = self._terms["gpus"]
        only = None if gpus == "auto" else tuple(gpus)
        return [
            replace(
                model, name=self._seat, sleeps=False, settings=settings, only=model.only or only, places=0
            )
            for model in models
        ]

    async def sample(self, draw: Draw) -> Sample:
        """The sample of a draw; its seconds are its share of the engine's."""
        agent = self.agents[draw.request.agent]
        serving = self._serving[agent.name]
        turns = (await self._turns.get()).get(serving)
        served = self._served[serving]
        prompt = await served.tokens(draw)
        async with self._turn(turns, serving):
            return await self._draw(served, agent, draw, prompt)

    async def close(self) -> None:
        """End all engines."""
        self._said = self.report()
        turns = await self._turns.end() or {}
        served, self._served = self._served, {}
        async with AsyncExitStack() as held:
            for one in served.values():
                held.callback(one.thread.shutdown)
                held.push_async_callback(one.process.close)
            for several in set(turns.values()):
                held.push_async_callback(several.close)

    def report(self) -> list[str]:
        """What there is to say of time sharing."""
        made = self._turns.made
        return self._said if made is None else [turns.report() for turns in dict.fromkeys(made.values())]

    @asynccontextmanager
    async def _turn(self, turns: Turns | None, name: str) -> AsyncIterator[None]:
        """A context in which a model may be asked."""
        if turns is not None:
            async with turns.turn(name):
                yield
        elif self._admission is not None:
            await self._served[name].process.window()  # one that starts keeps no other one waiting
            async with self._admission.admitted(name):
                yield
        else:
            yield

    def _first(self) -> dict[str, Agent]:
        """The first agent of every model."""
        return {name: self.agents[name] for name in dict.fromkeys(self._serving.values())}

    def _sharing(self, first: str) -> list[str]:
        """The agents of the model that `first` is the first of."""
        return [name for name, serving in self._serving.items() if serving == first]

    def _open(self) -> Mapping[str, Turns]:
        """Plan, and give every model its process; returns the turns of those that take them."""
        plan = self.ground.plan()
        first = self._first()
        if plan is not None:
            agents = set() if self._seat else set(first)
            stages = [(stage.names, stage.awake) for stage in plan.stages if set(stage.names) & agents]
            self._check_sleepers(plan, stages)
        elif self._residents is not None and self._residents < len(first):
            stages = [(tuple(first), self._residents)]
        else:
            stages = []
        turns: dict[str, Turns] = {}
        for names, awake in stages:
            turns |= dict.fromkeys(
                names, Turns(names, awake, self._wake, self._sleep, patience=self._patience)
            )
        for name, agent in first.items():
            recipe = self._recipe(agent, sleeps=name in turns)
            seat = None if plan is None else plan.seats[self._seat or name]
            self._served[name] = Served(agent, Process(recipe, self.ground, seat))
        if plan is None and not turns:
            places = {name: self._settings[name].max_num_seqs for name in first}
            self._admission = Admission(places, cpu_at_once(len(first)))
        return turns

    def _check_sleepers(self, plan: Plan, stages: Sequence[tuple[Sequence[str], int]]) -> None:
        """Raise BadInput where the weights of those that sleep do not fit into the machine's memory."""
        asleep, there = 0, main_memory()
        for names, awake in stages:
            weights = sorted(plan.seats[name].model.weights for name in names)
            asleep += sum(weights[awake - 1 :])  # in a swap one sleeps before another wakes
        if self._level == 1 and asleep > there:
            raise BadInput(
                f"agents that take turns keep up to {asleep / GIB:.1f} GiB of weights in the machine's "
                f"memory while they sleep, and {there / GIB:.1f} GiB of it are free; give "
                f"engine.sleep_level=2, which reads them from their files again, or leave out an agent"
            )

    def _recipe(self, agent: Agent, *, sleeps: bool) -> Recipe:
        settings, whose = self._settings[agent.name], f"agent {agent.name!r}"
        arguments = settings.engine_arguments(agent.model, agent.revision)
        return Recipe(
            whose,
            agent.model,
            {**arguments, "enable_sleep_mode": sleeps},
            lambda: settings.cpu_arguments(agent.model, agent.revision, whose),
            settings.arguments,
            engines=len(self._first()),
            level=self._level,
        )

    async def _wake(self, name: str) -> None:
        await self._served[name].process.wake()

    async def _sleep(self, name: str) -> None:
        await self._served[name].process.sleep()

    async def _draw(self, served: Served, agent: Agent, draw: Draw, prompt: list[int]) -> Sample:
        limit = min(int(agent.sampling["max_tokens"]), await served.process.window() - len(prompt))
        if limit < 1:
            return Sample("", Usage(0, 0), 0.0, "context_window")
        from vllm import SamplingParams  # it is there once the process is
        from vllm.sampling_params import RequestOutputKind

        try:
            params = SamplingParams(
                temperature=float(agent.sampling["temperature"]),
                top_p=float(agent.sampling["top_p"]),
                max_tokens=limit,
                # As engine=openai sends it, so that a server of vLLM's gives the same text.
                seed=draw.sampling_seed >> 32,
                stop_token_ids=sorted(served.stop),
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                **self._extra[agent.name],
            )
        except ValueError as error:
            raise BadInput(f"agent {agent.name!r} cannot be sampled so: {error}") from error
        answer, seconds = await served.process.generate(prompt, params)
        written = answer.outputs[0]
        if written.finish_reason not in ("stop", "length"):
            raise Unavailable(f"agent {agent.name!r}: vLLM ended an answer with {written.finish_reason!r}")
        return Sample(
            await served.text(written.token_ids), Usage(len(prompt), len(written.token_ids)), seconds
        )


def _settings(agent: Agent, shared: Mapping[str, Any]) -> Settings:
    """Raises BadInput for an agent that cannot be run here, as far as no model is needed to tell."""
    whose = f"agent {agent.name!r}"
    if agent.simulated:
        raise BadInput(f"{whose} has model 'simulated'; choose engine=simulator, or give it a model")
    loading.check_model(agent.model, whose)
    return Settings.of(shared, agent.options, f"ensemble.agents.{agent.name}.options", whose)
