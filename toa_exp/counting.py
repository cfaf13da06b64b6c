"""The architecture of any model class of transformers, by counting its weights without making them.

For the families that `toa_exp.cost` has no formula for. It takes the seconds that importing
transformers takes, and no memory: the weights are on PyTorch's meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from toa_exp.cost import Architecture
from toa_exp.errors import BadInput

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def counted(config: Mapping[str, Any], *, output_head: bool = True) -> Architecture:
    """The architecture of the model class of a `config.json`; see `toa_exp.cost.architecture`.

    Matrices stacked over experts count by the share of the experts chosen per token. Attention is
    taken to be causal, over the whole context. Raises BadInput where transformers has no such class.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = config.get("model_type")
    try:
        full = AutoConfig.for_model(**{**config, "model_type": family})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(full)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"the FLOPs of model_type {family!r} are unknown: transformers has no such language model "
            f"({shorten(str(error), 200)}). Give `architecture` with the config.json fields of a model of "
            f"the same size"
        ) from error
    full = full.get_text_config()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    head_size = 0 if head is None else head.weight.numel()
    apart = tables | ({id(head.weight)} if head is not None else set())
    tied = head is not None and id(head.weight) in tables
    experts = next((getattr(full, n) for n in _EXPERTS if getattr(full, n, None)), None)
    share = full.num_experts_per_tok / experts if experts else 1.0
    matrices = 0.0
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and id(weight) not in apart and not name.endswith("bias"):
            stacked = experts is not None and weight.ndim == 3 and len(weight) == experts
            matrices += weight.numel() * (share if stacked else 1.0)
    layers, heads = full.num_hidden_layers, full.num_attention_heads
    size = getattr(full, "head_dim", None) or full.hidden_size // heads
    table = model.get_input_embeddings().weight.numel()
    return Architecture(
        matrices=round(matrices),
        head=head_size if output_head else 0,
        embedding=0 if output_head and tied else table,
        layers=layers,
        hidden=full.hidden_size,
        attention=layers * heads * size,
    )
