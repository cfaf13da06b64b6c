"""Models as folders that transformers and vLLM load: config, tokenizer, chat template, weights.

The weights are stored in bfloat16, which halves the size; they are meant to be run in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

from lab.network import Network, Shape

WEIGHTS = "model.safetensors"


def save(network: Network, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a causal language model, or a sequence classifier where the network has a score head."""
    folder.mkdir(parents=True, exist_ok=True)
    scorer = network.score is not None
    token = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": None, "eos_token_id": token("<end>"), "pad_token_id": token("<pad>")}
    fields: dict[str, Any] = {**network.shape.config(), **ends, **({"num_labels": 1} if scorer else {})}
    config = LlamaConfig(**fields)
    written: dict[str, Any] = {
        **config.to_diff_dict(),
        "architectures": ["LlamaForSequenceClassification" if scorer else "LlamaForCausalLM"],
        "dtype": "float32",
    }
    _write(folder / "config.json", written)
    if not scorer:
        _write(folder / "generation_config.json", ends)
    tokenizer.save_pretrained(str(folder))
    state = {key: value.to(torch.bfloat16).contiguous() for key, value in network.exported().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path) -> Network:
    """The network of a folder that `save` wrote, in float32."""
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        head=config["head_dim"],
        bias=config["attention_bias"],
    )
    network = Network(shape, outputs=int("SequenceClassification" in config["architectures"][0]))
    network.load(load_file(folder / WEIGHTS))
    return network.eval()


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
