"""Sampling many answers at once with the recipe's own network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toa_exp.engines.decoding import nucleus
from toa_exp.lab.network import Cache, Network


@torch.inference_mode()
def sample(
    network: Network,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator,
    *,
    end: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    most: int = 192,
    rows: int = 256,
    done: Callable[[int], object] = lambda answers: None,
) -> list[list[int]]:
    """One answer a prompt, as token ids without the end token, at most `most` tokens each.

    Prompts of a like length run together, `rows` at a time. Temperature 0 takes the likeliest token;
    at others tokens are drawn from the fewest likeliest ones whose probability reaches `top_p`.
    `done` is told of every so many answers.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    answers: list[list[int]] = [[] for _ in prompts]
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        got = _run(network, [prompts[n] for n in chosen], generator, end, temperature, top_p, most)
        for number, answer in zip(chosen, got, strict=True):
            answers[number] = answer
        done(len(chosen))
    return answers


def _run(
    network: Network,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator,
    end: int,
    temperature: float,
    top_p: float,
    most: int,
) -> list[list[int]]:
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(p) for p in prompts])
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    cache = Cache(network.shape, padding, width + most, network.embed_tokens.weight.dtype)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    done = [False] * len(prompts)
    for _ in range(most):
        token = _draw(network.logits(network(ids, cache)[:, -1]).float(), generator, temperature, top_p)
        for place, (row, value) in enumerate(zip(alive, token.tolist(), strict=True)):
            done[place] = done[place] or value == end
            if not done[place]:
                answers[row].append(value)
        left = [place for place, finished in enumerate(done) if not finished]
        if not left:
            break
        if len(left) < 0.8 * len(alive):  # dropping rows copies the cache, so not at every step
            kept = torch.tensor(left)
            alive, done, token = [alive[place] for place in left], [False] * len(left), token[kept]
            cache.keep(kept)
        ids = token[:, None]
    return answers


def _draw(logits: Tensor, generator: torch.Generator, temperature: float, top_p: float) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    noise = torch.empty_like(logits).exponential_(generator=generator)
    probabilities = (logits / temperature).softmax(-1)
    if top_p < 1.0:
        probabilities = nucleus(probabilities, torch.full(probabilities.shape[:1], top_p))
    return (probabilities / noise).argmax(-1)
