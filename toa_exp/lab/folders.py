"""Model folders as transformers and vLLM load them: config, weights, tokenizer with its chat template.

Weights are stored in bfloat16 to be small; the models are meant to be run in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialised
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from toa_exp.engines import loading
from toa_exp.errors import BadInput
from toa_exp.lab.network import Network, Shape

WEIGHTS = "model.safetensors"


class Kind(Enum):
    """The class of transformers that a folder is for."""

    LANGUAGE = "LlamaForCausalLM"
    SEQUENCE = "LlamaForSequenceClassification"
    TOKENS = "LlamaForTokenClassification"


def save(
    kind: Kind, shape: Shape, state: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write a model folder; `state` has the names of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    token = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": None, "eos_token_id": token("<end>"), "pad_token_id": token("<pad>")}
    labels = {} if kind is Kind.LANGUAGE else {"num_labels": 1}
    fields: dict[str, Any] = {**shape.config(), **ends, **labels}
    config = LlamaConfig(**fields)
    _write(
        folder / "config.json",
        {**config.to_diff_dict(), "architectures": [kind.value], "dtype": "float32"},
    )
    if kind is Kind.LANGUAGE:
        _write(folder / "generation_config.json", ends)
    tokenizer.save_pretrained(str(folder))
    small = {key: value.to(torch.bfloat16).contiguous() for key, value in state.items()}
    (folder / WEIGHTS).write_bytes(serialised(small, metadata={"format": "pt"}))


def load(folder: Path, whose: str) -> Network:
    """The language model of a folder that `save` wrote, in float32.

    Raises BadInput, naming the owner `whose`, where it is not there, damaged or another kind of model.
    """
    model = loading.load_model(
        "AutoModelForCausalLM", str(folder), None, torch.device("cpu"), "float32", whose
    )
    config, state = model.config, model.state_dict()
    state.pop("lm_head.weight", None)  # the embedding once more
    try:
        shape = Shape(
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            head=config.head_dim,
            bias=config.attention_bias,
        )
        with loading.ONE_AT_A_TIME:  # who loads another model meanwhile changes torch's default format
            network = Network(shape)
        network.load(state)
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"{whose}: {str(folder)!r} is no model that toa-exp lab train made: {error}"
        ) from error
    return network.eval()


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
