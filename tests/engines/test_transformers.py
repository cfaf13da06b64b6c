"""The embedded engine, on tiny random models."""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from embedded import CPU, agent, draw, sample_all, texts
from tiny_models import EOS, causal_model, character_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from toa_exp.draws import Sample
from toa_exp.engines import loading
from toa_exp.engines.cache import RowCache
from toa_exp.engines.decoding import Decoder
from toa_exp.engines.transformers import Transformers
from toa_exp.errors import BadInput, Permanent, Unavailable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_model(tmp_path_factory.mktemp("model"))


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


def test_where_memory_is_too_small_fewer_are_decoded_at_once_and_no_text_changes(folder, monkeypatch, caplog):
    draws = [draw("Hello", i) for i in range(12)]
    expected = texts(sample_all(agent(folder), draws))
    decode, most = Decoder._decode, []

    def small(decoder: Decoder) -> list:
        if len(decoder.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        most.append(len(decoder.rows))
        return decode(decoder)

    monkeypatch.setattr(Decoder, "_decode", small)
    assert texts(sample_all(agent(folder), draws, max_batch=8)) == expected
    assert max(most) == 2
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2 and "with 8 draws at once" in warned[0] and "with 4 draws" in warned[1]
    assert "agent 'ash': cpu is out of memory" in warned[0] and "engine.max_batch_tokens" in warned[0]


def test_a_long_draw_that_memory_is_too_small_for_leaves_room_for_many_short_ones(folder, monkeypatch):
    decode, most = Decoder._decode, []

    def small(decoder: Decoder) -> None:
        if len(decoder.rows) * max(len(row.prompt) + row.limit for row in decoder.rows) > 250:
            raise torch.OutOfMemoryError("CUDA out of memory")
        most.append(len(decoder.rows))
        decode(decoder)

    monkeypatch.setattr(Decoder, "_decode", small)
    agents = [agent(folder, "ash", max_tokens=180), agent(folder, "oak", max_tokens=4)]
    draws = [draw("Hello", i, name) for name in ("ash", "oak") for i in range(2 if name == "ash" else 9)]
    assert all(isinstance(sample, Sample) for sample in sample_all(agents, draws))
    assert max(most) > 3


def test_draws_that_were_done_before_memory_ran_out_in_the_same_step_are_handed_over(folder, monkeypatch):
    draws = [draw("Hello", i) for i in range(6)]
    expected = texts(sample_all(agent(folder), draws))
    leave, lost = RowCache.leave, []

    def full(cache: RowCache, *given: object) -> None:
        if not lost:
            lost.append(given)
            raise torch.OutOfMemoryError("CUDA out of memory")
        leave(cache, *given)

    monkeypatch.setattr(RowCache, "leave", full)
    assert texts(sample_all(agent(folder), draws, max_batch=3)) == expected and lost


def test_a_draw_that_memory_is_too_small_for_alone_is_unavailable(folder, monkeypatch):
    def full(decoder: Decoder) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "_decode", full)
    agents = [agent(folder, "ash", max_tokens=1), agent(folder, "oak", max_tokens=9)]
    short, long = sample_all(agents, [draw("Hello", 0, "ash"), draw("Hello", 0, "oak")])
    assert isinstance(short, Sample) and short.usage.completion_tokens == 1
    assert isinstance(long, Unavailable) and not isinstance(long, Permanent)
    assert "one draw alone" in str(long) and "9 to write" in str(long)


def test_a_text_that_cannot_be_read_is_told_to_who_asked_and_the_others_go_on(folder, monkeypatch):
    text_of = loading.text_of
    spoilt: list[object] = []

    def broken(tokenizer: object, tokens: list[int]) -> str:
        if not spoilt:
            spoilt.append(tokens)
            raise IndexError("piece id is out of range")
        return text_of(tokenizer, tokens)

    monkeypatch.setattr(loading, "text_of", broken)
    results = sample_all(agent(folder), [draw("Hello", i) for i in range(6)], max_batch=2)
    assert [str(result) for result in results if isinstance(result, Exception)] == [
        "piece id is out of range"
    ]
    assert sum(isinstance(result, Sample) for result in results) == 5


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
