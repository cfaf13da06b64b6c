"""What continuous batching saves: static batches, the engine's decoder and an ideal, in one run.

A random Llama of 0.8M parameters writes texts of heavy-tailed lengths, three ways: in static batches,
each of which runs until its longest text is done; with the engine's decoder; and, as the ideal, as many
texts of one length, the mean, of which none waits for another. All three run the same loop. Throughput
counts the tokens that were asked for, per second of processor time, and is given as a ratio to static
batches in the same round: over the whole run, and up to the moment when no text waits for a place any
more, since then the batch empties whatever is done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toa_exp.engines.decoding import Decoder, Row


@dataclass
class Tally:
    """Tokens asked for and written, seconds, and the same while texts wait, with the places then."""

    asked: int = 0
    written: int = 0
    seconds: float = 0.0
    full_tokens: int = 0
    full_seconds: float = 0.0
    places: int = 0
    empty: int = 0


def main() -> None:
    """Run all three ways in turn and print shares and ratios."""
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(_config()).eval()
    lengths = heavy_tailed(options.texts, options.longest, options.seed)
    mean = round(statistics.mean(lengths))
    facts = {"mean_length": mean, "median_length": statistics.median(lengths), "torch": torch.__version__}
    print("config", json.dumps(vars(options) | facts), flush=True)
    decode(model, [8] * options.max_batch, options.max_batch)  # warms up
    rounds: list[dict[str, Tally]] = []
    for _ in range(options.rounds):
        tallies = {"static": static(model, lengths, options.max_batch)}
        tallies["continuous"] = decode(model, lengths, options.max_batch)
        tallies["ideal"] = decode(model, [mean] * len(lengths), options.max_batch)
        rounds.append(tallies)
    for way in ("static", "continuous"):
        print(way, json.dumps(shares(rounds[0][way])))
    for way in ("continuous", "ideal"):
        whole = [rate(r[way]) / rate(r["static"]) for r in rounds]
        full = [r[way].full_tokens / r[way].full_seconds / rate(r["static"]) for r in rounds]
        print(
            f"{way}_over_static", json.dumps({"whole_run": spread(whole), "while_texts_wait": spread(full)})
        )


def heavy_tailed(count: int, longest: int, seed: int) -> list[int]:
    """Log-normal lengths with a median of 33 tokens, up to `longest`."""
    noise = Random(seed)
    return [max(1, min(longest, round(noise.lognormvariate(3.5, 0.9)))) for _ in range(count)]


def static(model: LlamaForCausalLM, lengths: Sequence[int], max_batch: int) -> Tally:
    """Batches in the order of arrival, each decoded until its longest text is done."""
    total = Tally()
    for start in range(0, len(lengths), max_batch):
        batch = lengths[start : start + max_batch]
        tally = decode(model, [max(batch)] * len(batch), max_batch)
        total.asked += sum(batch)
        total.written += tally.written
        total.seconds += tally.seconds
    return total


def decode(model: LlamaForCausalLM, lengths: Sequence[int], max_batch: int) -> Tally:
    """Decode texts of these lengths."""
    decoder = Decoder(model, frozenset(), max_batch=max_batch, max_batch_tokens=2**40)
    rows = []
    for index, length in enumerate(lengths):
        chance = Random(index)
        prompt = chance.choices(range(100), k=chance.randrange(15, 35))
        rows.append(Row(prompt, length, 0.8, 1.0, index))
        decoder.add(rows[-1])
    tally = Tally(asked=sum(lengths), written=sum(lengths))
    started = time.process_time()
    while decoder.demand:
        decoder.step()
        if decoder.waiting:
            tally.places += max_batch
            tally.empty += max_batch - len(decoder.rows)
        elif not tally.full_tokens:
            tally.full_tokens = sum(len(row.tokens) for row in rows)
            tally.full_seconds = time.process_time() - started
    tally.seconds = time.process_time() - started
    return tally


def rate(tally: Tally) -> float:
    """Tokens asked for, per second."""
    return tally.asked / tally.seconds


def shares(tally: Tally) -> dict[str, float]:
    """The share of row-steps spent on texts already done, and of places empty while texts wait."""
    return {
        "row_steps_wasted": round(1 - tally.asked / tally.written, 3),
        "places_empty_while_texts_wait": round(tally.empty / max(1, tally.places), 3),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
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
    parser = argparse.ArgumentParser(description="Static, continuous and ideal batching compared.")
    parser.add_argument("--texts", type=int, default=384)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
