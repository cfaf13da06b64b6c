"""FLOPs against numbers worked out by hand and against the weights of real model classes."""

from dataclasses import replace

import pytest

from toa_exp.core import Usage
from toa_exp.cost import Accountant, Cost, Price, architecture
from toa_exp.counting import counted
from toa_exp.errors import BadInput

LLAMA_3_1_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN2_72B = {
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
}
MIXTRAL_8X22B = {
    "model_type": "mixtral",
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "matrices", "head", "attention"),
    [
        # a layer: 2 x 4096 x 4096 + 2 x 4096 x 1024 = 41,943,040 and 3 x 4096 x 14336 = 176,160,768
        (LLAMA_3_1_8B, 32 * (41_943_040 + 176_160_768), 4096 * 128256, 32 * 4096),
        # a layer: 2 x 8192 x 8192 + 2 x 8192 x 1024 = 150,994,944 and 3 x 8192 x 29568 = 726,663,168
        (QWEN2_72B, 80 * (150_994_944 + 726_663_168), 8192 * 152064, 80 * 8192),
        # a layer: 2 x 6144 x 6144 + 2 x 6144 x 1024 = 88,080,384, two experts of 3 x 6144 x 16384 =
        # 301,989,888 each and a router of 6144 x 8 = 49,152
        (MIXTRAL_8X22B, 56 * (88_080_384 + 2 * 301_989_888 + 49_152), 6144 * 32768, 56 * 6144),
    ],
    ids=["Llama-3.1-8B", "Qwen2-72B", "Mixtral-8x22B"],
)
def test_parameters_by_hand(config, matrices, head, attention):
    shape = architecture(config)
    assert (shape.matrices, shape.head, shape.embedding, shape.attention) == (matrices, head, head, attention)


def test_active_parameters_are_those_published():
    # without norms and biases: 8,030,261,248 - 65 x 4096; 72,706,203,648 - 161 x 8192 - 80 x 10,240
    assert architecture(LLAMA_3_1_8B).active == 8_029_995_008
    assert architecture(QWEN2_72B).active == 72_704_065_536
    assert architecture(MIXTRAL_8X22B).active == 39_160_774_656  # "39B active"


def test_flops_by_hand():
    # 2 x 7,504,658,432 x 1024 + 4 x 32 x 4096 x (1024 x 1025 / 2)
    assert architecture(LLAMA_3_1_8B).flops(1000, 24) == 15_369_540_468_736 + 275_146_342_400
    # 2 x 71,458,357,248 x 3 + 4 x 80 x 8192 x 6
    assert architecture(QWEN2_72B).flops(2, 1) == 428_750_143_488 + 15_728_640
    # 2 x 38,959,448,064 x 2 + 4 x 56 x 6144 x 3
    assert architecture(MIXTRAL_8X22B).flops(1, 1) == 155_837_792_256 + 4_128_768


def test_the_papers_form_by_hand():
    # 10 x (2 x 8,029,995,008 + 2 x 32 x 10 x 4096)
    assert architecture(LLAMA_3_1_8B).paper_flops(6, 4) == 10 * (16_059_990_016 + 2_621_440)


def test_the_paper_accounting_lands_where_its_table_does():
    # Random sampling from Llama-3.1-70B on WMT took 3.5e15 at N = 160, which is some 155 tokens a sample.
    config = {**LLAMA_3_1_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    shape = architecture({**config, "num_attention_heads": 64})
    assert shape.active == pytest.approx(70.55e9, rel=0.001)
    assert 160 * shape.paper_flops(100, 55) == pytest.approx(3.5e15, rel=0.02)


def test_a_sliding_window_bounds_the_context():
    config = {**LLAMA_3_1_8B, "model_type": "mistral", "sliding_window": 4}
    near, far = architecture(config), architecture({**config, "sliding_window": None})
    assert far.flops(6, 0) - near.flops(6, 0) == 4 * 32 * 4096 * (21 - (10 + 4 + 4))
    half = architecture({**config, "layer_types": ["sliding_attention", "full_attention"] * 16})
    assert half.flops(6, 0) == (near.flops(6, 0) + far.flops(6, 0)) / 2


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = [
    {"model_type": "llama", **TINY, "num_key_value_heads": 2},
    {"model_type": "mistral", **TINY, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "qwen2", **TINY, "num_key_value_heads": 2},
    {"model_type": "qwen3", **TINY, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "gemma", **TINY, "num_key_value_heads": 1, "head_dim": 8},
    {"model_type": "gemma2", **TINY, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    {"model_type": "phi3", **TINY, "num_key_value_heads": 2, "pad_token_id": 0},
    {"model_type": "olmo2", **TINY, "num_key_value_heads": 2},
    {"model_type": "granite", **TINY, "num_key_value_heads": 2},
    {"model_type": "cohere", **TINY, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "stablelm", **TINY, "num_key_value_heads": 2},
    {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    {"model_type": "gpt_neox", **TINY},
    {"model_type": "phi", **TINY, "num_key_value_heads": 2},
    {"model_type": "mixtral", **TINY, "num_key_value_heads": 2, "num_local_experts": 4,
     "num_experts_per_tok": 4},
    {"model_type": "qwen2_moe", **TINY, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 4,
     "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    {"model_type": "qwen3_moe", **TINY, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 4,
     "moe_intermediate_size": 24, "head_dim": 16},
]  # fmt: skip


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])
def test_parameters_are_those_of_the_model_class(config):
    """All experts are chosen here, so that active parameters are all parameters."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    full = AutoConfig.for_model(**{**config, "vocab_size": 64})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(full)
    head = model.get_output_embeddings().weight
    apart = {id(head), id(model.get_input_embeddings().weight)}
    gates = 32 * 2 if config["model_type"] == "qwen2_moe" else 0  # sigmoid gate of the shared expert
    positions = 64 * 32 if config["model_type"] == "gpt2" else 0
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in apart)
    shape = architecture({**full.to_dict(), "model_type": config["model_type"]})
    sparse = sum(name.endswith("shared_expert_gate.weight") for name, _ in model.named_parameters())
    assert shape.matrices == matrices - positions - (gates // 2) * sparse
    assert shape.head == head.numel()
    assert shape.embedding == (0 if head is model.get_input_embeddings().weight else head.numel())


def test_bidirectional_encoders_attend_to_everything():
    config = {"model_type": "xlm-roberta", **TINY, "vocab_size": 64}
    shape = architecture(config, output_head=False)
    assert shape.head == 0
    assert shape.flops(5, 0) == 2.0 * shape.matrices * 5 + 4.0 * 2 * 32 * 25


COUNTED = [
    # a layer: 2 x 32 x 32 + 2 x 32 x 16 of attention and 2 x 32 x 48
    ({"model_type": "starcoder2", **TINY, "num_key_value_heads": 2}, 2 * (2048 + 1024 + 3072)),
    # a layer: 32 x 48 (one key-value head) + 32 x 32 of attention and 2 x 32 x 128
    ({"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
     2 * (1536 + 1024 + 8192)),
    # a layer: 4 x 32 x 32 of attention, a router of 32 x 8 and two experts of 3 x 32 x 48
    ({"model_type": "olmoe", **TINY, "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 2},
     2 * (4096 + 256 + 2 * 4608)),
]  # fmt: skip


@pytest.mark.parametrize(("config", "matrices"), COUNTED, ids=lambda value: str(value)[:30])
def test_families_without_a_formula_are_counted(config, matrices):
    shape = architecture({**config, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1})
    assert (shape.matrices, shape.head, shape.attention) == (matrices, 32 * 64, 2 * 32)


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config["model_type"])
def test_counting_agrees_with_the_formulas(config):
    if config["model_type"] in ("gpt2", "qwen2_moe"):
        pytest.skip("the formula leaves out positions and gates")
    from transformers import AutoConfig

    full = AutoConfig.for_model(**{**config, "vocab_size": 64}).to_dict()
    for head in (True, False):
        formula, count = (make(full, output_head=head) for make in (architecture, counted))
        assert replace(formula, windows=count.windows) == count


def test_the_language_model_of_several_parts_is_what_counts():
    parts = {"model_type": "llava", "text_config": LLAMA_3_1_8B}
    assert architecture(parts) == architecture(LLAMA_3_1_8B | {"text_config": None})
    with pytest.raises(BadInput, match=r"text_config=5 of a config\.json holds no fields"):
        architecture(LLAMA_3_1_8B | {"text_config": 5})


def test_unknown_families_and_missing_fields_are_refused():
    with pytest.raises(BadInput, match="'lama'"):
        architecture({**LLAMA_3_1_8B, "model_type": "lama"})
    with pytest.raises(BadInput, match="intermediate_size"):
        architecture({key: value for key, value in LLAMA_3_1_8B.items() if key != "intermediate_size"})


def test_an_accountant_charges_agent_and_reward_apart():
    shape = architecture(LLAMA_3_1_8B)
    scorer = architecture(LLAMA_3_1_8B, output_head=False)
    charge = Accountant({"a": shape}, {"a": Price(2.0, 10.0)}, scorer)
    cost = charge("a", Usage(100, 20), 1.5, 130)
    assert cost == Cost(1, 100, 20, shape.flops(100, 20), scorer.flops(130, 0), 0.0004, 1.5)
    paper = Accountant({"a": shape}, {"a": None}, scorer, "paper")("a", Usage(100, 20), 1.5, 0)
    assert paper == Cost(1, 100, 20, shape.paper_flops(100, 20), 0.0, None, 1.5)
    cost.add(paper)
    assert cost.usd is None and cost.samples == 2 and cost.tokens == 240
    with pytest.raises(BadInput, match="paper"):
        Accountant({}, {}, None, "papr")
