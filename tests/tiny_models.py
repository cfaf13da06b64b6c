"""Tiny random Llama folders with a character tokenizer, built in code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)  # several threads contend where cores are shared, and these models are tiny

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?+-*/=()\n"
SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>"]
PAD, EOS = 0, 1
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def character_tokenizer(
    *,
    chat: bool = True,
    padding_side: str = "left",
    special: Sequence[str] = SPECIAL,
    template: str = TEMPLATE,
    **changes: Any,
) -> PreTrainedTokenizerFast:
    """One token a character, with the chat markers as special tokens; `special` begins as SPECIAL does."""
    vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side=padding_side,
        chat_template=template if chat else None,
        **changes,
    )


def byte_tokenizer(special: Sequence[str], template: str | None, **changes: Any) -> PreTrainedTokenizerFast:
    """One token a byte of UTF-8, behind the special tokens: the form that Qwen's tokenizers have."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[0],
        chat_template=template,
        **changes,
    )


def tiny_config(**changes: Any) -> LlamaConfig:
    """A Llama of some ten thousand parameters with a window of 256 tokens."""
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": EOS,
    }
    return LlamaConfig(**(fields | changes))


def causal_model(folder: Path, *, chat: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A folder with a random language model and its tokenizer."""
    torch.manual_seed(seed)
    LlamaForCausalLM(tiny_config(**changes)).save_pretrained(folder)
    character_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def classifier_model(
    folder: Path, *, labels: int = 1, padding_side: str = "right", seed: int = 0, **changes: Any
) -> Path:
    """A folder with a random sequence classifier and its tokenizer."""
    torch.manual_seed(seed)
    config = tiny_config(num_labels=labels, **changes)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    character_tokenizer(padding_side=padding_side).save_pretrained(folder)
    return folder


def process_model(folder: Path, *, labels: int = 1, seed: int = 0, **changes: Any) -> Path:
    """A folder with a random token classifier and its tokenizer."""
    torch.manual_seed(seed)
    config = tiny_config(num_labels=labels, **changes)
    LlamaForTokenClassification(config).save_pretrained(folder)
    character_tokenizer(padding_side="right").save_pretrained(folder)
    return folder


def published(
    folder: Path,
    backbone: PreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A folder as authors publish it: a backbone's weights below `model.`, and the tensors of a head."""
    weights = {f"model.{name}": tensor for name, tensor in backbone.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**weights, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})
    fields: PreTrainedConfig = backbone.config
    (folder / "config.json").write_text(json.dumps({**fields.to_diff_dict(), **config}))
    tokenizer.save_pretrained(folder)
    return folder
