"""What continuous batching saves: static batches, the engine's decoder and an ideal, in one run.

A random Llama of 0.8M parameters writes texts of heavy-tailed lengths, three ways: in static batches,
which run until their longest text is done; with the engine's decoder; and, as the ideal, as many texts
of one length, the mean, of which none waits for another. All three run the same loop. Throughputs count
the tokens that were asked for and are given as ratios to static batches in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toa_exp.engines.decoding import Decoder, Row


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(_config()).eval()
    lengths = heavy_tailed(options.texts, options.longest, options.seed)
    mean = round(statistics.mean(lengths))
    print(
        "config",
        json.dumps(vars(options) | {"mean_length": mean, "median_length": statistics.median(lengths)}),
    )
    ways = {
        "static": lambda: static(model, lengths, options.max_batch),
        "continuous": lambda: decode(model, lengths, options.max_batch),
        "ideal": lambda: decode(model, [mean] * len(lengths), options.max_batch),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            counts = way()
            rate = counts["asked"] / (time.process_time() - started)
            if round_:  # the first one warms up
                rates[name].append(rate)
            elif name != "ideal":
                print(name, json.dumps(shares(counts)))
    for name in ("continuous", "ideal"):
        ratios = [rate / base for rate, base in zip(rates[name], rates["static"], strict=True)]
        spread = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        print(
            f"throughput_{name}_over_static",
            json.dumps({key: round(value, 2) for key, value in spread.items()}),
        )


def heavy_tailed(count: int, longest: int, seed: int) -> list[int]:
    """Log-normal lengths around 32 tokens, up to `longest`."""
    noise = Random(seed)
    return [max(1, min(longest, round(noise.lognormvariate(3.5, 0.9)))) for _ in range(count)]


def static(model: LlamaForCausalLM, lengths: Sequence[int], max_batch: int) -> dict[str, int]:
    """Batches in the order of arrival, each decoded until its longest text is done."""
    total: dict[str, int] = {}
    for start in range(0, len(lengths), max_batch):
        batch = lengths[start : start + max_batch]
        counts = decode(model, [max(batch)] * len(batch), max_batch)
        counts["asked"] = sum(batch)
        total = {key: total.get(key, 0) + value for key, value in counts.items()}
    return total


def decode(model: LlamaForCausalLM, lengths: Sequence[int], max_batch: int) -> dict[str, int]:
    """Decode texts of these lengths; counts tokens, and places while texts wait for one."""
    decoder = Decoder(model, frozenset(), max_batch=max_batch, max_batch_tokens=2**40)
    for index, length in enumerate(lengths):
        noise = Random(index)
        prompt = noise.choices(range(100), k=noise.randrange(15, 35))
        decoder.add(Row(prompt, length, 0.8, 1.0, noise))
    counts = {"asked": sum(lengths), "written": sum(lengths), "places": 0, "empty": 0}
    while decoder.demand:
        decoder.step()
        if decoder.waiting:
            counts["places"] += max_batch
            counts["empty"] += max_batch - len(decoder.rows)
    return counts


def shares(counts: dict[str, int]) -> dict[str, float]:
    """Of the row-steps computed, those for texts already done; of the places, those empty while texts wait."""
    return {
        "row_steps_wasted": round(1 - counts["asked"] / counts["written"], 3),
        "places_empty_while_texts_wait": round(counts["empty"] / max(1, counts["places"]), 3),
    }


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=100,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--longest", type=int, default=384)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
