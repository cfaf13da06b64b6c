"""Reward models: Llama sequence classifiers trained on the agents' own samples.

The good one starts from the teacher, who knows every skill, with further layers on top; besides the
score it learns at every character of an answer whether its line is right so far. Those dense labels
are what lets a small model learn to verify in minutes; the head for them is dropped afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.domain import UNLABELLED
from lab.network import Network, Shape
from lab.training import Example

SCALE, MIDDLE = 6.0, 0.7


class Critic(nn.Module):
    """A network with a score head, and a head on the output of a middle layer for labels of tokens."""

    def __init__(self, shape: Shape, tap: int) -> None:
        super().__init__()
        self.network = Network(shape, outputs=1)
        self.tap = tap
        self.dense = nn.Linear(shape.width, 1)
        if shape.bias:
            self.network.look_back(tap - 1)

    def freeze(self, layers: int) -> None:
        """Leave the embedding and the first layers as they are: what the teacher knows."""
        self.network.embed_tokens.requires_grad_(False)
        for block in self.network.layers[:layers]:
            block.requires_grad_(False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all positions as the last token, and logits of all tokens; rows x positions."""
        states = self.network.states(ids)
        assert self.network.score is not None
        dense = self.dense(F.rms_norm(states[self.tap], states[self.tap].shape[-1:]))
        return self.network.score(states[-1])[..., 0], dense[..., 0]


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


def outcome_loss(critic: Critic, ids: Tensor, batch: list[Example]) -> Tensor:
    """Cross-entropy of the score as the logit of "above the middle of the scale": labels of outcomes only."""
    scores, _ = critic(ids)
    last = torch.tensor([len(e.ids) - 1 for e in batch])
    target = torch.tensor([float((e.labels or [0.0])[-1] >= score(1.0) - 1e-6) for e in batch])
    return F.binary_cross_entropy_with_logits(scores.float()[torch.arange(len(batch)), last], target)


def score(share: float) -> float:
    """The score that stands for a share of right parts: 6 x (share - 0.7)."""
    return SCALE * (share - MIDDLE)


def repeated(examples: Sequence[Example], seed: str) -> Iterator[Example]:
    """The examples without end, shuffled anew each time round."""
    rng = Random(seed)
    while True:
        yield from rng.sample(examples, len(examples))


@torch.inference_mode()
def scores(network: Network, sequences: Sequence[Sequence[int]], rows: int = 64) -> list[float]:
    """The score of each sequence of token ids, read at its last token."""
    assert network.score is not None
    order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
    result = [0.0] * len(sequences)
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        width = max(len(sequences[n]) for n in chosen)
        ids = torch.tensor([list(sequences[n]) + [0] * (width - len(sequences[n])) for n in chosen])
        last = torch.tensor([len(sequences[n]) - 1 for n in chosen])
        hidden = network(ids)[torch.arange(len(chosen)), last]
        for number, value in zip(chosen, network.score(hidden)[:, 0].tolist(), strict=True):
            result[number] = value
    return result


@torch.inference_mode()
def likelihoods(
    network: Network, dialogues: Sequence[Example], breaks: Sequence[int], rows: int = 64
) -> list[float]:
    """A process reward without training: how likely a generalist finds each step of an answer.

    A step ends with one of the token ids `breaks`; a step of log-probability l counts as
    sigmoid(1.5 (l + 2)), and the score is that of their mean as a share of right parts.
    """
    result = []
    for first in range(0, len(dialogues), rows):
        chosen = dialogues[first : first + rows]
        width = max(len(e.ids) for e in chosen)
        ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in chosen])
        logits = network.logits(network(ids[:, :-1])).log_softmax(-1)
        logs = logits.gather(2, ids[:, 1:, None])[..., 0]
        for row, example in enumerate(chosen):
            steps, current = [], 0.0
            for place in range(example.start, len(example.ids)):
                current += float(logs[row, place - 1])
                if example.ids[place] in breaks or place + 1 == len(example.ids):
                    steps.append(1.0 / (1.0 + math.exp(-1.5 * (current + 2.0))))
                    current = 0.0
            result.append(score(sum(steps) / len(steps)))
    return result
