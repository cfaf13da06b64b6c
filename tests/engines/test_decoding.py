"""The decode loop: whose texts, how many places, and which tokens."""

from random import Random

import pytest
import torch
from tiny_models import EOS, VOCABULARY, causal_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
)

from toa_exp.engines import decoding
from toa_exp.engines.decoding import Decoder, Row, choose_tokens
from toa_exp.errors import BadInput


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(causal_model(tmp_path_factory.mktemp("model"))).eval()


def rows_of(numbers: list[int]) -> dict[int, Row]:
    """Rows of many lengths, with a prompt, a limit and a seed that belong to their number."""
    return {
        n: Row(
            prompt=Random(n).choices(range(6, VOCABULARY), k=1 + 13 * n % 50),
            limit=1 + 17 * n % 60,
            temperature=0.0 if n % 5 == 0 else 0.9,
            top_p=0.9 if n % 2 else 1.0,
            seed=n,
        )
        for n in numbers
    }


def finish(decoder: Decoder) -> list[int]:
    """Decode all; returns how many rows were at work in each step."""
    at_work = []
    while decoder.demand:
        before = len(decoder.rows)
        done = decoder.step()
        at_work.append(max(before, len(decoder.rows) + len(done)))
    return at_work


def decode(
    model: LlamaForCausalLM, numbers: list[int], max_batch: int, tokens: int = 10**6
) -> dict[int, list]:
    rows = rows_of(numbers)
    decoder = Decoder(model, frozenset({EOS}), max_batch=max_batch, max_batch_tokens=tokens)
    for row in rows.values():
        decoder.add(row)
    finish(decoder)
    return {n: row.tokens for n, row in rows.items()}


@pytest.fixture(scope="module")
def alone(model: LlamaForCausalLM) -> dict[int, list]:
    """The tokens of rows decoded one after the other."""
    return decode(model, list(range(24)), max_batch=1)


def test_a_text_does_not_depend_on_its_batch(model, alone):
    numbers = list(alone)
    assert len({tuple(tokens) for tokens in alone.values()}) > 20
    assert decode(model, numbers, max_batch=7) == alone
    Random(1).shuffle(numbers)
    assert decode(model, numbers, max_batch=64) == alone
    assert decode(model, numbers, max_batch=16, tokens=300) == alone


def test_rows_that_arrive_while_others_are_decoded_get_the_same_text(model, alone):
    rows = rows_of(list(alone))
    decoder = Decoder(model, frozenset({EOS}), max_batch=12, max_batch_tokens=10**6)
    for number, row in rows.items():
        decoder.add(row)
        for _ in range(number % 4):
            decoder.step()
    finish(decoder)
    assert {n: row.tokens for n, row in rows.items()} == alone


def small(config: type, **changes: object) -> PreTrainedModel:
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**(fields | changes))).eval()


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (MistralConfig, {"num_key_value_heads": 1, "sliding_window": 8}),
        (Gemma3TextConfig, {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8}),
        (GPT2Config, {"n_inner": 16}),
        (OPTConfig, {"ffn_dim": 16, "word_embed_proj_dim": 16}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_every_kind_of_model_writes_what_transformers_generates(config, changes):
    """Sliding windows, layers of two kinds, learned positions, and positions made from the mask."""
    model, reference = small(config, **changes), small(config, **changes)
    rows = rows_of([0, 5, 10, 15, 20])
    decoder = Decoder(model, frozenset(), max_batch=2, max_batch_tokens=10**6)
    for row in rows.values():
        decoder.add(row)
    finish(decoder)
    for row in rows.values():
        ids = torch.tensor([row.prompt])
        whole = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=row.limit
        )
        assert row.tokens == whole[0, len(row.prompt) :].tolist()


def test_rows_leave_at_once_and_their_places_are_filled(model):
    """The share of places that stand empty while rows wait is below a fifth, lengths heavy-tailed."""
    noise = Random(0)
    lengths = [min(200, int(8 * noise.paretovariate(1.2))) for _ in range(120)]
    decoder = Decoder(model, frozenset(), max_batch=16, max_batch_tokens=10**6)
    rows = [Row([7, 8, 9], length, 1.0, 1.0, i) for i, length in enumerate(lengths)]
    for row in rows:
        decoder.add(row)
    places, used = 0, 0
    while decoder.waiting:
        decoder.step()
        places += 16
        used += len(decoder.rows)
    assert used / places > 0.8
    finish(decoder)
    assert [len(row.tokens) for row in rows] == lengths


def test_a_batch_holds_no_more_tokens_than_it_may(model):
    rows = rows_of(list(range(24)))
    decoder = Decoder(model, frozenset(), max_batch=16, max_batch_tokens=400)
    for row in rows.values():
        decoder.add(row)
    sizes = set()
    while decoder.demand:
        decoder.step()
        sizes.add(len(decoder.rows))
        reach = max((len(row.prompt) + row.limit for row in decoder.rows), default=0)
        assert len(decoder.rows) * reach <= 400
    assert max(sizes) > 2


def test_long_prompts_are_read_one_by_one_and_decoded_together(model, monkeypatch):
    monkeypatch.setattr(decoding, "_PREFILL_TOKENS", 1)
    decoder = Decoder(model, frozenset(), max_batch=16, max_batch_tokens=10_000)
    for row in rows_of(list(range(4))).values():
        decoder.add(row)
    decoder.step()
    assert len(decoder.rows) > 1 and not decoder.waiting


def test_a_row_without_probabilities_is_marked_and_harms_no_other(tmp_path):
    model = LlamaForCausalLM.from_pretrained(causal_model(tmp_path)).eval()
    poison = 5
    model.model.embed_tokens.weight.data[poison] = float("nan")
    numbers = list(range(16))
    alone = decode(model, numbers, max_batch=1)
    rows = rows_of(numbers)
    for number in numbers[::7]:
        rows[number].prompt = [poison, *rows[number].prompt]
    decoder = Decoder(model, frozenset({EOS}), max_batch=8, max_batch_tokens=10**6)
    for row in rows.values():
        decoder.add(row)
    finish(decoder)
    broken = [n for n, row in rows.items() if row.broken]
    assert set(numbers[::7]) <= set(broken) and len(broken) < 9
    sound = [n for n in numbers if n not in broken]
    assert {n: rows[n].tokens for n in sound} == {n: alone[n] for n in sound}


def test_the_time_of_all_steps_is_shared_out(model, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("toa_exp.engines.decoding.time.perf_counter", lambda: float(next(ticks)))
    rows = [Row([7, 8], 5, 1.0, 1.0, i) for i in range(3)]
    decoder = Decoder(model, frozenset(), max_batch=4, max_batch_tokens=10**6)
    for row in rows:
        decoder.add(row)
    finish(decoder)
    assert sum(row.seconds for row in rows) == pytest.approx(5.0)


def test_tokens_come_as_often_as_their_probability():
    logits = torch.tensor([1.5, 0.2, -0.5, 0.9, -2.0])
    count = 40_000
    noise = torch.tensor([Random(i).random() for i in range(count)], dtype=torch.float64)

    def frequencies(temperature: float, top_p: float) -> torch.Tensor:
        tokens, valid = choose_tokens(
            logits.expand(count, -1), torch.full((count,), temperature), torch.full((count,), top_p), noise
        )
        assert bool(valid.all())
        return torch.bincount(tokens, minlength=5) / count

    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(0)
        assert frequencies(temperature, 1.0) == pytest.approx(expected.numpy(), abs=0.01)
    assert frequencies(0.0, 0.5).tolist() == [1, 0, 0, 0, 0]
    # At temperature 1 the tokens 0, 3 and 1 have 0.49, 0.27 and 0.13: two reach 0.7, three 0.8.
    kept = logits.softmax(0)
    two = kept * torch.tensor([1, 0, 0, 1, 0])
    three = kept * torch.tensor([1, 1, 0, 1, 0])
    assert frequencies(1.0, 0.7) == pytest.approx((two / two.sum()).numpy(), abs=0.01)
    assert frequencies(1.0, 0.8) == pytest.approx((three / three.sum()).numpy(), abs=0.01)
    assert frequencies(1.0, 1e-6).tolist() == [1, 0, 0, 0, 0]


def test_rows_with_different_sampling_share_a_batch():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(4, -1)
    tokens, _ = choose_tokens(
        logits,
        torch.tensor([0.0, 1.0, 1.0, 1.0]),
        torch.tensor([1.0, 1.0, 0.5, 1.0]),
        torch.tensor([0.0, 0.0, 0.0, 0.9999], dtype=torch.float64),
    )
    assert tokens.tolist() == [2, 0, 2, 2]


def test_what_is_no_probability_is_told():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0], [float("-inf"), 1.0]])
    for temperature in (0.0, 1.0):
        _, valid = choose_tokens(
            logits, torch.full((4,), temperature), torch.ones(4), torch.zeros(4, dtype=torch.float64)
        )
        assert valid.tolist() == [True, False, False, True]


def test_models_with_recurrent_layers_are_refused(model, monkeypatch):
    from transformers import FalconMambaConfig

    monkeypatch.setattr(model, "config", FalconMambaConfig(num_hidden_layers=1))
    with pytest.raises(BadInput, match="recurrent"):
        Decoder(model, frozenset(), max_batch=1, max_batch_tokens=1)
