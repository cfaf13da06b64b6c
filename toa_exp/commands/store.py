"""Look into the store: toa-exp store stats|export|verify.

stats counts draws, tokens and scores by agent and reward. export writes every draw with its scores
as JSON Lines. verify checks the store's structure and recomputes every key from its fields.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig

from toa_exp.app import check_out, launch, positional
from toa_exp.draws import decode, digest, draw_key, encode
from toa_exp.errors import StoreError, choose
from toa_exp.storage import Storage, open_existing


def main(arguments: list[str]) -> int:
    """The command's exit status."""
    return launch(_store, "store", positional(arguments, "action"), "store")


def _store(config: DictConfig) -> None:
    actions = {"stats": _stats, "export": _export, "verify": _verify}
    if config.action not in actions:
        raise choose("action", config.action, list(actions))
    if config.out is not None:
        check_out(config.out)
    store = open_existing(config.store.path)
    try:
        if config.out is None:
            actions[config.action](store, sys.stdout)
        else:
            with Path(config.out).open("w", encoding="utf-8") as file:
                actions[config.action](store, file)
    finally:
        store.close()


def _stats(store: Storage, out: TextIO) -> None:
    """Counts by agent and by reward model, as a table."""
    ((problems,),) = store.rows("SELECT count(*) FROM problems")
    print(f"{store.name}: {problems} problems, {store.size() / 1e6:.1f} MB", file=out)
    names = _fingerprints(store)
    print(
        f"{'draws':>10} {'failed':>8} {'prompt tok.':>12} {'compl. tok.':>12} {'seconds':>10}  agent",
        file=out,
    )
    query = (
        "SELECT agent, count(*), count(failure), sum(prompt_tokens), sum(completion_tokens), sum(seconds) "
        "FROM draws GROUP BY agent ORDER BY 2 DESC, 1"
    )
    for agent, draws, failed, prompt, completion, seconds in store.rows(query):
        print(f"{draws:10} {failed:8} {prompt:12} {completion:12} {seconds:10.1f}  {names[agent]}", file=out)
    print(f"{'scores':>10} {'tokens':>12} {'seconds':>10}  reward", file=out)
    query = (
        "SELECT reward_model, count(*), sum(tokens), sum(seconds) FROM scores GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    for reward, scores, tokens, seconds in store.rows(query):
        print(f"{scores:10} {tokens:12} {seconds:10.1f}  {names[reward]}", file=out)


def _export(store: Storage, out: TextIO) -> None:
    """One JSON line a draw, problem by problem in the order they were first met."""
    names = {key: json.loads(text) for key, text in _fingerprints(store).items()}
    query = (
        "SELECT number, id, key, agent, prompt, occurrence, seed, text, prompt_tokens, completion_tokens, "
        f"seconds, failure FROM draws JOIN problems ON number = problem ORDER BY number, {store.ENTRY}"
    )
    current, scores = None, {}
    for number, problem, key, agent, prompt, occurrence, seed, text, *rest in store.rows(query):
        if number != current:
            current, scores = number, _scores(store, number, names)
        prompt_tokens, completion_tokens, seconds, failure = rest
        text = decode(text)
        line = {
            "draw": key.hex(),
            "problem": decode(problem),
            "agent": names[agent],
            "prompt": prompt.hex(),
            "occurrence": occurrence,
            "seed": seed,
            "text": text,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "seconds": seconds,
            "failure": failure,
            "scores": scores.get(digest(encode(text)), []),
        }
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _scores(store: Storage, problem: int, names: dict[bytes, Any]) -> dict[bytes, list[dict[str, Any]]]:
    """The scores of a problem by the digest of the text."""
    scores: dict[bytes, list[dict[str, Any]]] = {}
    query = "SELECT text, reward_model, reward, tokens FROM scores WHERE problem = ? ORDER BY key"
    for text, model, reward, tokens in store.rows(query, (problem,)):
        scores.setdefault(text, []).append({"by": names[model], "reward": reward, "tokens": tokens})
    return scores


def _verify(store: Storage, out: TextIO) -> None:
    """Check the store's structure and every key; raises StoreError with what does not fit."""
    faults = [*store.faults(), *_wrong_draws(store)]
    faults += _wrong_scores(store)
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:20])
        raise StoreError(f"{store.name} has {len(faults)} faults:{shown}")
    draws, scores = next(store.rows("SELECT (SELECT count(*) FROM draws), (SELECT count(*) FROM scores)"))
    counts = f"{draws} draws and {scores} scores"
    print(f"{store.name}: the {store.KIND} is sound, and the keys of {counts} fit their fields", file=out)


def _wrong_draws(store: Storage) -> Iterator[str]:
    known = _fingerprints(store)
    query = (
        "SELECT id, key, agent, prompt, occurrence, seed FROM draws LEFT JOIN problems ON number = problem"
    )
    for problem, key, agent, prompt, occurrence, seed in store.rows(query):
        if problem is None or agent not in known:
            yield f"draw {key.hex()} has no problem or no agent"
        elif draw_key(decode(problem), agent, prompt, occurrence, seed) != key:
            yield f"draw {key.hex()} of problem {decode(problem)!r} does not have the key of its fields"


def _wrong_scores(store: Storage) -> Iterator[str]:
    known = _fingerprints(store)
    for key, content, model, text in store.rows("SELECT key, content, reward_model, text FROM scores"):
        if model not in known:
            yield f"score {key.hex()} has no reward model"
        elif digest(content, model, text) != key:
            yield f"score {key.hex()} does not have the key of its fields"


def _fingerprints(store: Storage) -> dict[bytes, str]:
    return dict(store.rows("SELECT digest, json FROM fingerprints"))
