"""How many models of engine=transformers are in memory, on which GPUs, and who takes turns."""

import asyncio
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from embedded import CPU, agent, draw, sample_all, texts
from tiny_models import causal_model

from toa_exp.draws import Draw, Sample
from toa_exp.engines import gpus, loading, residents, transformers
from toa_exp.engines.lanes import Lane
from toa_exp.engines.seats import GIB, Gpu, Model
from toa_exp.engines.sizes import Size, weights_of
from toa_exp.engines.transformers import Transformers
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Permanent, Unavailable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_model(tmp_path_factory.mktemp("model"))


def test_models_that_take_turns_give_the_same_samples(folder, tmp_path, monkeypatch):
    agents = [
        agent(folder, "ash"),
        agent(folder, "oak", temperature=0.5),
        agent(causal_model(tmp_path / "elm", seed=1), "elm"),
        agent(causal_model(tmp_path / "fir", seed=2), "fir"),
    ]
    draws = [draw("Hello", i, name) for i in range(6) for name in ("ash", "oak", "elm", "fir")]
    together = texts(sample_all(agents, draws))
    loads = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *args: loads.append(args[1]) or load(*args))

    async def run() -> tuple[list[str], list[str]]:
        engine = Transformers({member.name: member for member in agents}, **CPU, residents=1)
        once = await asyncio.gather(*map(engine.sample, draws))
        again = await engine.sample(draws[0])
        said = engine.report()
        await engine.close()
        return texts([*once, again]), said

    taken, said = asyncio.run(run())
    assert taken == [*together, together[0]]
    assert len(loads) == 4 and loads[0] == loads[-1] == str(folder)
    assert "ash, elm, fir took turns, 1 awake at a time: 3 swaps took" in said[0]


def test_a_model_that_cannot_be_loaded_is_told_to_those_who_wait_for_its_turn(folder, tmp_path):
    broken = causal_model(tmp_path, chat=False)
    agents = [agent(folder, "ash"), agent(broken, "elm")]
    results = sample_all(agents, [draw("Hello", 0, "ash"), draw("Hello", 0, "elm")], residents=1)
    assert isinstance(results[0], Sample)
    assert isinstance(results[1], BadInput) and "agent 'elm'" in str(results[1])


def test_close_ends_those_who_wait_for_their_turn(folder, tmp_path):
    agents = [agent(folder, "ash", max_tokens=240), agent(causal_model(tmp_path, seed=1), "elm")]

    async def stop_early() -> list[Sample | BaseException]:
        engine = Transformers({member.name: member for member in agents}, **CPU, residents=1)
        running = [
            asyncio.create_task(engine.sample(draw("Hello", i, n))) for i, n in enumerate(["ash", "elm"])
        ]
        await asyncio.sleep(0.02)
        for task in running:
            task.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        await engine.close()
        return results

    assert all(isinstance(result, asyncio.CancelledError) for result in asyncio.run(stop_early()))


def test_the_number_of_residents_is_checked(folder):
    for wrong in (0, "all"):
        with pytest.raises(BadInput, match=r"engine\.residents"):
            Transformers({"ash": agent(folder)}, residents=wrong)


class Roomy:
    """A machine's memory by fakes: loads are noted, with what is still in memory at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: float) -> None:
        self.loads: list[str] = []
        self.most = 0
        self._models: list[weakref.ref] = []
        load = loading.load_model
        monkeypatch.setattr(residents, "free_memory", lambda device: ("cuda:0", int(free)))

        def noted(*given: object) -> object:
            made = load(*given)
            self.loads.append(given[1])
            self._models.append(weakref.ref(made))
            self.most = max(self.most, sum(model() is not None for model in self._models))
            return made

        monkeypatch.setattr(loading, "load_model", noted)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Agent], int]:
    """Three agents of models of one size, and its bytes."""
    names = ["ash", "oak", "elm"]
    agents = [agent(causal_model(tmp_path_factory.mktemp(n), seed=i), n) for i, n in enumerate(names)]
    return agents, weights_of(agents[0].model, None, "agent 'ash'", dtype="float32")


def three_each() -> list[Draw]:
    return [draw("Hello", i, name) for i in range(3) for name in ("ash", "oak", "elm")]


@pytest.mark.parametrize(("room", "at_once"), [(1.1, 1), (2.6, 2), (3.8, 3)])
def test_as_many_models_are_in_memory_as_fit_and_the_samples_are_the_same(
    three, room, at_once, monkeypatch, caplog
):
    agents, size = three
    together = texts(sample_all(agents, three_each()))
    memory = Roomy(monkeypatch, room * size)
    caplog.set_level("INFO")
    assert texts(sample_all(agents, three_each())) == together
    assert memory.most == at_once and len(memory.loads) == 3
    (line,) = [record.getMessage() for record in caplog.records if "models at once" in record.message]
    assert line.startswith(f"{at_once} of 3 models at once: ") and "agent 'elm'" in line


def test_a_model_that_does_not_fit_alone_is_told_before_it_is_loaded(three, monkeypatch):
    agents, size = three
    memory = Roomy(monkeypatch, 0.9 * size)
    errors = sample_all(agents, three_each())
    assert all(isinstance(error, BadInput) for error in errors) and not memory.loads
    said = str(errors[0])
    shown = f"{size / GIB:.2g} GiB of weights, {int(0.9 * size) / GIB:.2g} GiB free on cuda:0"
    assert f"does not fit: {shown}" in said and "0.00 GiB" not in said
    assert "engine.dtype=bfloat16" in said and "engine=vllm" in said


def test_models_whose_size_is_not_known_are_loaded_as_ever(three, monkeypatch, caplog):
    agents, _ = three
    memory = Roomy(monkeypatch, 1.0)

    def unknown(*given: object, **named: object) -> int:
        raise BadInput("its size is a secret")

    monkeypatch.setattr(residents, "weights_of", unknown)
    texts(sample_all(agents, three_each()))
    assert memory.most == 3 and "loaded at once: its size is a secret" in caplog.text


def test_what_is_asked_for_is_not_weighed(three, monkeypatch):
    agents, _ = three
    memory = Roomy(monkeypatch, 1.0)
    texts(sample_all(agents, three_each(), residents=2))
    assert memory.most == 2


def on_gpus(monkeypatch: pytest.MonkeyPatch, *sizes: float) -> list[str]:
    """GPUs of so many GiB that are none: the devices that models are loaded on, as they are asked for."""
    there = [Gpu(i, "a GPU", int(size * GIB), int(size * GIB)) for i, size in enumerate(sizes)]
    monkeypatch.setattr(gpus, "visible_gpus", lambda: there)
    asked: list[str] = []
    monkeypatch.setattr(loading, "device_of", lambda name, *_: asked.append(name) or torch.device("cpu"))
    return asked


def of_size(monkeypatch: pytest.MonkeyPatch, weights: float, cache: int = 128 * 1024) -> None:
    """Models of so many GiB, and bytes that a token takes in the cache."""
    size = Size(weights=int(weights * GIB), cache=cache, window=131072, heads=32, pairs=8, quantised=False)
    monkeypatch.setattr(transformers, "size_of", lambda *given, **named: size)


@pytest.mark.parametrize(
    ("weights", "there", "devices", "said"),
    [
        (15, [80, 80, 80], {"cuda:0", "cuda:1", "cuda:2"}, []),
        (15, [80], {"cuda:0"}, []),
        (15, [60], {"cuda:0"}, ["2 awake at a time"]),
        (15, [24], {"cuda:0"}, ["1 awake at a time"]),
        (15, [24, 24], {"cuda:0", "cuda:1"}, ["1 awake at a time"]),
    ],
)
def test_models_are_spread_over_the_gpus_and_take_turns_where_they_must(
    three, weights, there, devices, said, monkeypatch, capsys
):
    agents, _ = three
    together = texts(sample_all(agents, three_each()))
    asked = on_gpus(monkeypatch, *there)
    of_size(monkeypatch, weights)

    async def run() -> tuple[list[str], list[str]]:
        engine = Transformers({member.name: member for member in agents})
        samples = await asyncio.gather(*map(engine.sample, three_each()))
        lines = engine.report()
        await engine.close()
        return texts(samples), lines

    taken, lines = asyncio.run(run())
    assert taken == together and set(asked) == devices
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))
    assert f"plan for {len(there)} GPUs" in capsys.readouterr().err


def test_a_gpu_does_not_wait_for_another(three, monkeypatch):
    agents, _ = three
    on_gpus(monkeypatch, 24, 24)
    of_size(monkeypatch, 8)
    step, free, in_time = Lane.step, threading.Event(), []

    def held_up(lane: Lane) -> list[int]:
        if any(ask.agent.name == "ash" for ask in lane.asks.values()):
            in_time.append(free.wait(30))
        return step(lane)

    monkeypatch.setattr(Lane, "step", held_up)

    async def run() -> None:
        engine = Transformers({member.name: member for member in agents[:2]})
        ash = asyncio.create_task(engine.sample(draw("Hello", 0, "ash")))
        await engine.sample(draw("Hello", 0, "oak"))
        free.set()
        await ash
        await engine.close()

    asyncio.run(run())
    assert in_time and all(in_time)


def test_a_model_that_fits_on_no_gpu_is_told_with_what_would_do(three, monkeypatch):
    agents, _ = three
    asked = on_gpus(monkeypatch, 24, 24)
    of_size(monkeypatch, 30)
    [error] = sample_all(agents[0], [draw("Hello")], device="auto")
    assert isinstance(error, BadInput) and not asked
    said = str(error)
    assert "ash does not fit: weights 30.0 GiB" in said
    assert "GiB or more for" in said
    assert "engine=vllm, which quantises a model or spreads it" in said


def test_the_reward_is_planned_for_and_other_engines_take_no_turns_with_it(three, monkeypatch):
    agents, _ = three
    on_gpus(monkeypatch, 24)
    of_size(monkeypatch, 8)
    engine = Transformers({member.name: member for member in agents})
    engine.ground.add(lambda: [Model("reward", 8 * GIB, sleeps=False)])
    plan = engine.ground.plan()
    assert plan.stages[0].awake == 1 and plan.turns("reward") is None
    first, second = Transformers({"ash": agents[0]}), Transformers({"oak": agents[1]})
    second.join(first.ground)
    of_size(monkeypatch, 15)
    with pytest.raises(BadInput, match=r"ash, oak do not fit at once, or .* are of several engines"):
        first.ground.plan()
    on_gpus(monkeypatch, 48)
    assert not first.ground.plan().stages  # with smaller caches than wished for
    named = Transformers({"ash": agents[0]}, device="cuda:0")
    named.join(engine.ground)
    assert named.ground is None


def test_a_load_that_memory_is_too_small_for_is_tried_once_for_all_who_wait(folder, monkeypatch):
    move, tries, held = torch.nn.Module.to, [], []

    def full(model: torch.nn.Module, *given: object, **named: object) -> torch.nn.Module:
        tries.append(None)
        if len(tries) > 1:
            return move(model, *given, **named)
        held.append(weakref.ref(model))
        time.sleep(0.3)  # so that all draws wait by then
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    draws = [draw("Hello", i) for i in range(8)]

    async def run() -> tuple[list[BaseException | Sample], list[Sample]]:
        engine = Transformers({"ash": agent(folder)}, **CPU)
        errors = await asyncio.gather(*map(engine.sample, draws), return_exceptions=True)
        await asyncio.sleep(0.5)  # as a run does before it tries again; else these are told the same
        again = await asyncio.gather(*map(engine.sample, draws))
        await engine.close()
        return errors, again

    errors, again = asyncio.run(run())
    assert all(isinstance(e, Unavailable) and not isinstance(e, Permanent) for e in errors)
    assert "engine.residents=1" in str(errors[0]) and "engine=vllm" in str(errors[0])
    assert len(tries) == 2 and held[0]() is None
    monkeypatch.undo()
    assert texts(again) == texts(sample_all(agent(folder), draws))
