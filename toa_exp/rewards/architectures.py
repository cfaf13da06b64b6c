"""Reward models whose authors publish them with code of their own, on plain transformers.

Modules have the names of the published tensors, so that the checkpoints load as they are; no code that
comes with a model is run. PUBLISHED has each class under the name that its config.json gives in
`architectures`. What lies behind the last hidden state is computed in float32 at least: in bfloat16
the scores of two answers would often be equal.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, LlamaPreTrainedModel, Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from toa_exp.rewards.model import precise


class _Precise(nn.Linear):
    """A linear layer in float32 at least."""

    def forward(self, states: Tensor) -> Tensor:
        bias = None if self.bias is None else precise(self.bias)
        return F.linear(precise(states), precise(self.weight), bias)


class _TokenScores(Qwen2PreTrainedModel):
    """A Qwen2 with outputs at every token, rows x tokens x labels."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Any = None) -> Any:
        states = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids)[0]
        return TokenClassifierOutput(logits=self.head(states))  # type: ignore[arg-type]

    def head(self, states: Tensor) -> Tensor:
        raise NotImplementedError


class _Perceptron(_TokenScores):
    """A Qwen2 with a head of two layers: tensors score.0 and score.2."""

    labels: int

    def __init__(self, config: Any) -> None:
        config.num_labels = self.labels  # config.json does not say
        super().__init__(config)
        size = config.hidden_size
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(_Precise(size, size), nn.ReLU(), _Precise(size, self.labels))
        self.post_init()

    def head(self, states: Tensor) -> Tensor:
        scores: Tensor = self.score(states)
        return scores


class OutcomeScores(_Perceptron):
    """Qwen2.5-Math-RM: one score, read at the last token (Yang et al. 2024, arXiv 2409.12122)."""

    labels = 1


class StepScores(_Perceptron):
    """Qwen2.5-Math-PRM: wrong or right, read behind each step (Zhang et al. 2025, arXiv 2501.07301)."""

    labels = 2


class StepValues(_TokenScores):
    """Skywork-o1-Open-PRM: a value at each token, tensor v_head.summary, its logistic function a reward."""

    def __init__(self, config: Any) -> None:
        config.num_labels = 1
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = nn.ModuleDict({"summary": _Precise(config.hidden_size, 1)})
        self.post_init()

    def head(self, states: Tensor) -> Tensor:
        values: Tensor = self.v_head["summary"](states)
        return values


class Gate(nn.Module):
    """Weights of the objectives for a prompt: a perceptron, and a softmax at a temperature."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int, depth: int, temperature: float) -> None:
        super().__init__()
        sizes = [inputs, *([hidden] * depth), outputs]
        self.layers = nn.ModuleList(map(_Precise, sizes[:-1], sizes[1:]))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self._temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        """The weights, rows x objectives; they add up to the logit scale."""
        *hidden, last = self.layers
        for layer in hidden:
            states = layer(states).relu()
        weights: Tensor = (last(states) / self._temperature).softmax(-1) * precise(self.logit_scale)
        return weights


class Gated(LlamaPreTrainedModel):
    """ArmoRM: several objectives, mixed as the prompt asks for (Wang et al. 2024, arXiv 2406.12845).

    The objectives are a linear function of the state at the last token, `reward_transform_matrix`
    takes the length out of them, and `gating` weighs them by the state at the prompt's last token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        fields = config.to_dict()
        objectives = fields.get("num_objectives", 19)
        self.model = LlamaModel(config)
        self.regression_layer = _Precise(config.hidden_size, objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(objectives))
        self.gating = Gate(
            config.hidden_size,
            objectives,
            hidden=fields.get("gating_hidden_dim", 1024),
            depth=fields.get("gating_n_hidden", 3),
            temperature=fields.get("gating_temperature", 10),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompts: Tensor, answers: Tensor) -> Tensor:
        """The score of each row; `prompts` and `answers` are the places of their last tokens."""
        states = self.model(input_ids, attention_mask=attention_mask)[0]
        rows = torch.arange(len(states), device=states.device)
        objectives = self.regression_layer(states[rows, answers]) @ precise(self.reward_transform_matrix)
        scores: Tensor = (self.gating(states[rows, prompts]) * objectives).sum(-1)
        return scores


PUBLISHED: dict[str, type] = {
    "LlamaForRewardModelWithGating": Gated,
    "Qwen2ForRewardModel": OutcomeScores,
    "Qwen2ForProcessRewardModel": StepScores,
    "Qwen2ForPrmModel": StepValues,
}
