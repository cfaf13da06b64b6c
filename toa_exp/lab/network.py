"""The Llama architecture in plain torch, with the parameter names of transformers.

Training and the recipe's own sampling run on this small module, which is several times faster on a
CPU than the general one; what is saved is a Llama folder that transformers loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a network. One key-value head serves all query heads; `bias` is that of attention."""

    vocabulary: int
    width: int = 128
    layers: int = 4
    inner: int = 160
    heads: int = 4
    head: int = 32
    bias: bool = False

    def config(self) -> dict[str, Any]:
        """The fields of a transformers LlamaConfig."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 1,
            "head_dim": self.head,
            "attention_bias": self.bias,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }


class Norm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-5)


class Attention(nn.Module):
    """Causal attention with rotary positions and one key-value head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head = shape.heads, shape.head
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head, bias=shape.bias)
        self.k_proj = nn.Linear(shape.width, shape.head, bias=shape.bias)
        self.v_proj = nn.Linear(shape.width, shape.head, bias=shape.bias)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.width, bias=shape.bias)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        """x: rows x positions x width."""
        rows, length, _ = x.shape
        query = self.q_proj(x).view(rows, length, self.heads, self.head).transpose(1, 2)
        key = self.k_proj(x).view(rows, length, 1, self.head).transpose(1, 2)
        value = self.v_proj(x).view(rows, length, 1, self.head).transpose(1, 2)
        query, key = _rotate(query, rotary), _rotate(key, rotary)
        if cache is None:
            out = _attend(query, key[:, 0], value[:, 0])
        else:
            out = cache.attend(layer, query, key, value)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return mixed


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.width)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.width)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(shape.width, shape.inner, bias=False),
                "up_proj": nn.Linear(shape.width, shape.inner, bias=False),
                "down_proj": nn.Linear(shape.inner, shape.width, bias=False),
            }
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        """Attention, then the gated feed-forward block."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache, layer)
        y = self.post_attention_layernorm(x)
        inner = F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y)
        out: Tensor = x + self.mlp["down_proj"](inner)
        return out


class Network(nn.Module):
    """Embedding, layers and final norm; the output head is the embedding. `outputs` > 0 adds a score head."""

    def __init__(self, shape: Shape, outputs: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        self.score = nn.Linear(shape.width, outputs, bias=False) if outputs else None
        cosine, sine = _rotary(shape.head, 1024)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """The last hidden state of `ids`: rows x positions x width."""
        return self.states(ids, cache)[-1]

    def states(self, ids: Tensor, cache: Cache | None = None) -> list[Tensor]:
        """The output of every layer, and last that of the final norm; each rows x positions x width."""
        start = 0 if cache is None else cache.filled
        end = start + ids.shape[1]
        x = self.embed_tokens(ids)
        rotary = (self.cosine[start:end].to(x.dtype), self.sine[start:end].to(x.dtype))  # type: ignore[index]
        outputs = []
        for number, block in enumerate(self.layers):
            x = block(x, rotary, cache, number)
            outputs.append(x)
        if cache is not None:
            cache.filled = end
        return [*outputs, self.norm(x)]

    def look_back(self, layer: int, strength: float = 5.0) -> None:
        """Set the biases of a layer so that half of its heads first attend to the token before each.

        Comparing a token with what was predicted there needs that view, which is slow to be learnt.
        """
        size, weights = self.shape.head, self.state_dict()
        rate = 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)
        sharp = strength * (torch.arange(size // 2) < 6)
        key = torch.cat((sharp, torch.zeros(size // 2)))
        query = torch.cat((sharp * rate.cos(), -sharp * rate.sin()))
        weights[f"layers.{layer}.self_attn.k_proj.bias"].copy_(key)
        for head in range(self.shape.heads // 2):
            place = slice(head * size, (head + 1) * size)
            weights[f"layers.{layer}.self_attn.q_proj.bias"][place] = query

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token."""
        return F.linear(hidden, self.embed_tokens.weight)

    def exported(self) -> dict[str, Tensor]:
        """The parameters under the names of transformers."""
        state = self.state_dict()
        return {key if key.startswith("score") else f"model.{key}": value for key, value in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the parameters of a state; layers that it does not have stay as they are."""
        missing, unexpected = self.load_state_dict(
            {key.removeprefix("model."): value.float() for key, value in state.items()}, strict=False
        )
        if unexpected:
            raise ValueError(f"parameters of another architecture: {unexpected[:3]} (missing {missing[:3]})")


class Cache:
    """Keys and values of rows that are padded on the left, for decoding.

    `padding` is the number of padding tokens of each row; positions are counted with them, which
    rotary attention does not notice, since only distances count.
    """

    def __init__(self, shape: Shape, padding: Tensor, length: int, dtype: torch.dtype) -> None:
        size = (shape.layers, padding.shape[0], 1, length, shape.head)
        self.keys, self.values = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
        self.padding, self.filled = padding, 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values and attend to all so far."""
        start, end = self.filled, self.filled + query.shape[2]
        self.keys[layer, :, :, start:end] = key
        self.values[layer, :, :, start:end] = value
        place = torch.arange(end)
        mask = place[None, None, None, :] >= self.padding[:, None, None, None]
        if end - start > 1:
            causal = place[None, :] <= torch.arange(start, end)[:, None]
            # A padding position attends to itself, so that no row of the softmax is empty.
            mask = (mask & causal) | torch.eye(end, dtype=torch.bool)[start:end]
            keys = self.keys[layer, :, :, :end].expand(-1, query.shape[1], -1, -1)
            values = self.values[layer, :, :, :end].expand(-1, query.shape[1], -1, -1)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        # One new token: the query heads are the rows of one small product with the shared keys.
        keys, values = self.keys[layer, :, 0, :end], self.values[layer, :, 0, :end]
        weights = torch.bmm(query[:, :, 0] / query.shape[-1] ** 0.5, keys.transpose(1, 2))
        weights = weights.masked_fill(~mask[:, 0], float("-inf")).softmax(-1)
        return torch.bmm(weights, values).unsqueeze(2)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.padding = self.padding[rows]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with shared keys: the heads are stacked as rows of one product a sequence.

    At these sizes that is faster on a CPU, forward and backward, than the fused kernel.
    """
    rows, heads, length, head = query.shape
    scores = torch.bmm(query.reshape(rows, heads * length, head) * head**-0.5, key.transpose(1, 2))
    future = torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
    weights = (scores.view(rows, heads, length, length) + future).softmax(-1).to(value.dtype)
    return torch.bmm(weights.view(rows, heads * length, length), value).view(rows, heads, length, head)


def _rotary(head: int, length: int) -> tuple[Tensor, Tensor]:
    rate = 1.0 / 10000.0 ** (torch.arange(0, head, 2).float() / head)
    angle = torch.outer(torch.arange(length).float(), rate)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat((-second, first), dim=-1) * rotary[1]
