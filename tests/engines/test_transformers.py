"""The embedded engine, on tiny random models."""

import asyncio
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from tiny_models import EOS, causal_model, character_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Sample, canonical, digest, draw_key
from toa_exp.engines import gpus, loading, residents, transformers
from toa_exp.engines.packing import GIB, Gpu, Model
from toa_exp.engines.sizes import Size, weights_of
from toa_exp.engines.transformers import Transformers
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Permanent, Unavailable

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_model(tmp_path_factory.mktemp("model"))


def agent(folder: Path, name: str = "ash", options: dict | None = None, **sampling: float) -> Agent:
    fields = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 40} | sampling
    return Agent(name, str(folder), None, fields, options=options or {})


def draw(text: str, occurrence: int = 0, name: str = "ash") -> Draw:
    messages = [{"role": "user", "content": text}]
    asked, prompt = digest(name.encode()), digest(canonical(messages))
    key = draw_key("p", asked, prompt, occurrence, 0)
    return Draw(key, Problem("p", text), Request(name), messages, asked, prompt, occurrence, 0)


def sample_all(
    agents: Agent | Sequence[Agent], draws: Sequence[Draw], **settings: object
) -> list[Sample | BaseException]:
    """The samples, or errors, of draws that are all asked for at once."""
    members = [agents] if isinstance(agents, Agent) else agents

    async def run() -> list[Sample | BaseException]:
        engine = Transformers({member.name: member for member in members}, **{**CPU, **settings})
        try:
            return await asyncio.gather(*map(engine.sample, draws), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


def texts(samples: Sequence[Sample | BaseException]) -> list[str]:
    for sample in samples:
        if isinstance(sample, BaseException):
            raise sample
    return [sample.text for sample in samples]


def test_a_draw_gives_the_same_sample_in_every_batch(folder):
    draws = [draw("x" * (1 + 11 * i % 60), i) for i in range(16)]
    alone = sample_all(agent(folder), draws, max_batch=1)
    assert len(set(texts(alone))) > 12
    batched = sample_all(agent(folder), draws, max_batch=5)
    assert texts(batched) == texts(alone)
    assert [s.usage for s in batched] == [s.usage for s in alone]
    order = Random(0).sample(range(16), 16)
    shuffled = sample_all(agent(folder), [draws[i] for i in order])
    assert texts(shuffled) == [alone[i].text for i in order]
    assert all(sample.seconds > 0 for sample in alone)


def test_draws_that_come_later_join_and_give_the_same_text(folder):
    draws = [draw(f"Sum {i}", i) for i in range(12)]

    async def trickle() -> list[str]:
        engine = Transformers({"ash": agent(folder)}, **CPU, max_batch=4)
        running = []
        for one in draws:
            running.append(asyncio.create_task(engine.sample(one)))
            await asyncio.sleep(0.01)
        samples = await asyncio.gather(*running)
        await engine.close()
        return texts(samples)

    assert asyncio.run(trickle()) == texts(sample_all(agent(folder), draws, max_batch=1))


def test_temperature_0_writes_what_transformers_generates(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = ["Hello", "What is 12 + 30?", "z"]
    expected = []
    for prompt in prompts:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )
        ids = model.generate(**chat, do_sample=False, max_new_tokens=40)[0, chat["input_ids"].shape[1] :]
        expected.append(
            (tokenizer.decode(ids, skip_special_tokens=True), chat["input_ids"].shape[1], len(ids))
        )
    samples = sample_all(agent(folder, temperature=0.0), [draw(prompt) for prompt in prompts])
    assert expected == [(s.text, s.usage.prompt_tokens, s.usage.completion_tokens) for s in samples]


def test_the_first_token_is_distributed_as_the_model_says(folder):
    count = 1500
    samples = sample_all(
        agent(folder, max_tokens=1, temperature=1.5, top_p=1.0), [draw("Hi", i) for i in range(count)]
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.inference_mode():
        probabilities = (model(**chat).logits[0, -1] / 1.5).softmax(-1)
    seen = Counter(texts(samples))
    likely = [(int(i), float(probabilities[i])) for i in probabilities.argsort(descending=True)]
    likely = [(i, p) for i, p in likely if i not in tokenizer.all_special_ids][:10]
    for token, p in likely:
        error = (p * (1 - p) / count) ** 0.5
        assert abs(seen[tokenizer.decode([token])] / count - p) < 4 * error


def test_an_answer_ends_at_any_token_that_ends_one(folder, tmp_path):
    greedy = agent(folder, temperature=0.0)
    [whole] = sample_all(greedy, [draw("Hello")])
    tokenizer = character_tokenizer()
    ids = tokenizer(whole.text, add_special_tokens=False)["input_ids"]
    stop = next(i for i in range(2, 40) if ids[i] not in ids[:i])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [EOS, ids[stop]]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    [cut] = sample_all(agent(tmp_path, temperature=0.0), [draw("Hello")])
    assert cut.text == whole.text[:stop]
    assert cut.usage.completion_tokens == stop + 1
    assert cut.failure is None


def test_the_window_bounds_prompt_and_answer(folder):
    around = len(loading.token_ids(character_tokenizer(), draw("").messages, "", reply=True))
    lengths = [256 - around + more for more in (-3, -1, 0, 500)]
    samples = sample_all(agent(folder, temperature=0.0), [draw("x" * length) for length in lengths])
    assert [s.failure for s in samples] == [None, None, "context_window", "context_window"]
    assert [s.usage.prompt_tokens for s in samples] == [253, 255, 0, 0]
    assert [s.usage.completion_tokens for s in samples] == [3, 1, 0, 0]
    assert [s.text for s in samples[2:]] == ["", ""]


def test_agents_share_a_model_and_keep_their_sampling(folder, tmp_path, monkeypatch):
    loaded = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *args: loaded.append(args) or load(*args))
    other = causal_model(tmp_path, seed=1)
    agents = [
        agent(folder, "ash"),
        agent(folder, "oak", temperature=0.0),
        agent(other, "elm"),
        agent(folder, "fir", options={"dtype": "bfloat16"}),
    ]
    draws = [draw("Hello", i, name) for i in range(3) for name in ("ash", "oak", "elm", "fir")]
    together = texts(sample_all(agents, draws))
    assert len(loaded) == 3
    for index, name in enumerate(["ash", "oak", "elm"]):
        mine = [one for one in draws if one.request.agent == name]
        assert together[index::4] == texts(sample_all(agents[index], mine))
    assert together[1] == together[5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"dtpye": "float32"}}, "Did you mean 'dtype'"),
        ({"options": {"dtype": "float31"}}, "Allowed: auto, bfloat16, float16, float32"),
        ({"temperature": -1.0}, "temperature is at least 0"),
        ({"top_p": 0.0}, "top_p above 0"),
        ({"max_tokens": 0}, "max_tokens at least 1"),
    ],
)
def test_agents_that_cannot_be_run_are_told_at_once(folder, changes, message):
    with pytest.raises(BadInput, match=message) as error:
        Transformers({"ash": agent(folder, **changes)})
    assert "'ash'" in str(error.value)


def test_settings_are_checked_at_once(folder):
    with pytest.raises(BadInput, match=r"engine\.device 'cdua'"):
        Transformers({}, device="cdua")
    with pytest.raises(BadInput, match=r"engine\.max_batch=0"):
        Transformers({}, max_batch=0)
    with pytest.raises(BadInput, match="no folder"):
        Transformers({"ash": agent(folder / "nothing")})
    with pytest.raises(BadInput, match="engine=simulator"):
        Transformers({"ash": agent(Path("simulated"))})


def test_weights_that_are_not_numbers_end_in_an_error(tmp_path):
    folder = causal_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data[3] = float("nan")
    model.save_pretrained(folder)
    for error in sample_all(agent(folder), [draw("Hello"), draw("Bye")]):
        assert isinstance(error, Permanent)
        assert "agent 'ash'" in str(error) and "options.dtype=float32" in str(error)


def test_out_of_memory_is_unavailable_and_passes(folder, monkeypatch):
    from toa_exp.engines.decoding import Decoder

    step, calls = Decoder.step, []

    def sometimes(decoder: Decoder) -> list:
        calls.append(None)
        done = step(decoder)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return done

    monkeypatch.setattr(Decoder, "step", sometimes)
    draws = [draw("Hello", i) for i in range(6)]
    results = sample_all(agent(folder), draws, max_batch=3)
    failed = [result for result in results if isinstance(result, Unavailable)]
    assert failed and not isinstance(failed[0], Permanent) and "engine.max_batch" in str(failed[0])
    monkeypatch.undo()
    expected = sample_all(agent(folder), draws)
    for result, whole in zip(results, expected, strict=True):
        assert result in failed or result.text == whole.text
    assert len(failed) <= 3


def test_a_draw_that_was_done_before_memory_ran_out_in_the_same_step_is_told_too(folder, monkeypatch):
    from toa_exp.engines.decoding import Decoder

    def full(decoder: Decoder) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "_decode", full)
    agents = [agent(folder, "ash", max_tokens=1), agent(folder, "oak", max_tokens=9)]
    results = sample_all(agents, [draw("Hello", 0, "ash"), draw("Hello", 0, "oak")])
    assert all(isinstance(result, Unavailable) for result in results)


def test_close_ends_what_is_under_way_and_the_engine_can_go_on(folder):
    engine = Transformers({"ash": agent(folder, max_tokens=240)}, **CPU, max_batch=1)

    async def stop_early() -> list[Sample | BaseException]:
        running = asyncio.gather(
            *(engine.sample(draw("Hello", i)) for i in range(20)), return_exceptions=True
        )
        await asyncio.sleep(0.1)
        await engine.close()
        return await running

    results = asyncio.run(stop_early())
    assert any(isinstance(result, Unavailable) for result in results)

    async def go_on() -> str:
        sample = await engine.sample(draw("Hello"))
        await engine.close()
        return sample.text

    assert [asyncio.run(go_on())] == texts(sample_all(agent(folder, max_tokens=240), [draw("Hello")]))


def test_a_draw_that_nobody_waits_for_any_more_harms_no_other(folder):
    async def run() -> str:
        engine = Transformers({"ash": agent(folder)}, **CPU)
        dropped = asyncio.create_task(engine.sample(draw("Bye")))
        kept = asyncio.create_task(engine.sample(draw("Hello")))
        await asyncio.sleep(0.01)
        dropped.cancel()
        sample = await kept
        await engine.close()
        return sample.text

    assert [asyncio.run(run())] == texts(sample_all(agent(folder), [draw("Hello")]))


def test_importing_and_constructing_the_engine_loads_no_torch():
    code = (
        "import sys; from toa_exp.engines.transformers import Transformers; Transformers({}); "
        "import toa_exp.rewards.classifier; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_that_cannot_be_loaded_is_told_to_all_who_ask(tmp_path):
    folder = causal_model(tmp_path, chat=False)
    for error in sample_all(agent(folder), [draw("Hello"), draw("Bye")]):
        assert isinstance(error, BadInput) and "agent 'ash'" in str(error)


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
    assert "does not fit: 0.00 GiB of weights, 0.00 GiB free on cuda:0" in said
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
    monkeypatch.setattr(loading, "device_of", lambda name: asked.append(name) or torch.device("cpu"))
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
