"""Reward models: the teacher with further layers on top, trained on the agents' own samples.

A critic learns two things at once: at every token of an answer whether its part is right so far, and
at the end the share of right parts. The dense labels are what lets a small model learn to verify in
minutes. Saved is one of the two heads: the first makes a process reward model (a token classifier),
the second a sequence classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toa_exp.lab.domain import UNLABELLED
from toa_exp.lab.folders import Kind
from toa_exp.lab.network import Network, Shape
from toa_exp.lab.training import Example

FURTHER = 2
"""Layers on top of the teacher's."""

SCALE, MIDDLE = 6.0, 0.7


class Critic(nn.Module):
    """A network with a head for the answer as a whole (`score`) and one for each token (`steps`)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.network = Network(shape, outputs=1)
        self.steps = nn.Linear(shape.width, 1)

    def follow(self, teacher: Network) -> None:
        """Take over the teacher's embedding and layers, and leave them as they are from here on."""
        state = {key: value for key, value in teacher.exported().items() if key != "model.norm.weight"}
        self.network.load(state)
        self.network.embed_tokens.requires_grad_(False)
        for block in self.network.layers[: teacher.shape.layers]:
            block.requires_grad_(False)
        self.network.look_back(teacher.shape.layers)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What each head says at each position; both rows x positions."""
        states = self.network(ids)
        assert self.network.score is not None
        return self.network.score(states)[..., 0], self.steps(states)[..., 0]

    def exported(self, kind: Kind) -> dict[str, Tensor]:
        """The parameters of a model with one of the heads, under the names of transformers."""
        state = self.network.exported()
        if kind is Kind.SEQUENCE:
            return state
        return {**state, "score.weight": self.steps.weight.data, "score.bias": self.steps.bias.data}


def critic_loss(critic: Critic, ids: Tensor, batch: list[Example]) -> Tensor:
    """Squared error of the score (label of the last token) and cross-entropy of the tokens' labels."""
    scores, dense = critic(ids)
    last = torch.tensor([len(e.ids) - 1 for e in batch])
    target = torch.tensor([(e.labels or [0.0])[-1] for e in batch])
    # Both terms are of the order of 1 at the start; the dense one is what has to be learnt first.
    loss = 0.2 * F.mse_loss(scores.float()[torch.arange(len(batch)), last], target)
    labels = torch.full(ids.shape, UNLABELLED)
    for row, example in enumerate(batch):
        labels[row, : len(example.ids) - 1] = torch.tensor((example.labels or [])[:-1])
    known = ~labels.isnan()
    if bool(known.any()):
        loss = loss + 2.0 * F.binary_cross_entropy_with_logits(dense.float()[known], labels[known])
    return loss


def score(share: float) -> float:
    """The score that stands for a share of right parts: 6 x (share - 0.7)."""
    return SCALE * (share - MIDDLE)


def repeated(examples: Sequence[Example], seed: str) -> Iterator[Example]:
    """The examples without end, shuffled anew each time round."""
    rng = Random(seed)
    while True:
        yield from rng.sample(examples, len(examples))
