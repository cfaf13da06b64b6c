"""Other ways to run the same searches on the same server, a thread a question.

`seeds` are, by the number of a problem, those of its requests in order, which decide how long each takes.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from random import Random

from omegaconf import DictConfig

from toa_exp.build import build_function
from toa_exp.core import Problem, Reply, Usage

AGENTS = ["ash", "elm", "oak", "fir"]
TAU = 0.1
Seeds = Sequence[Sequence[int]]


def reward_of(text: str) -> float:
    return Random(text).gauss(0.0, TAU)


def threads(count: int, work: Callable[[int], None]) -> float:
    """Wall seconds of `work` in as many threads, all started together."""
    started = time.perf_counter()
    running = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return time.perf_counter() - started


def blocking(url: str) -> Callable[[str, int], str]:
    """A call that waits for its answer, over a connection of its own thread."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    local = threading.local()

    def ask(prompt: str, seed: int) -> str:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(host, int(port))
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "seed": seed}
        local.connection.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = json.loads(local.connection.getresponse().read())
        return str(answer["choices"][0]["message"]["content"])

    return ask


def thread_a_question(config: DictConfig, url: str, seeds: Seeds) -> float:
    """The same search, a thread a question: every thread waits for each of its samples in turn."""
    make, ask = build_function(config.method, "method"), blocking(url)

    def work(number: int) -> None:
        problem = Problem(f"q{number}", "?")
        running = make(problem, tuple(AGENTS), len(seeds[number]), Random(number))
        asked = list(reversed(seeds[number]))
        replies: list[Reply] | None = None
        try:
            while True:
                requests = next(running) if replies is None else running.send(replies)
                replies = []
                for request in requests:
                    text = ask(f"{number}", asked.pop())
                    replies.append(Reply(request, text, reward_of(text), Usage(9, 9)))
        except StopIteration:
            assert not asked, "the search asked for less"

    return threads(len(seeds), work)


def treequest_in_threads(url: str, seeds: Seeds) -> float:
    """TreeQuest's StandardMCTS, a thread a question."""
    from treequest import StandardMCTS

    ask = blocking(url)

    def work(number: int) -> None:
        asked = iter(seeds[number])

        def generate(draft: str | None) -> tuple[str, float]:
            text = ask(f"{number}", next(asked))
            return text, 1.0 / (1.0 + math.exp(-reward_of(text) / TAU))

        algorithm: StandardMCTS[str] = StandardMCTS()
        state = algorithm.init_tree()
        for _ in seeds[number]:
            state = algorithm.step(state, dict.fromkeys(AGENTS, generate), inplace=True)

    return threads(len(seeds), work)
