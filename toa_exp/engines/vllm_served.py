"""A model that vLLM serves: its process, and its tokenizer on this side of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from toa_exp.draws import Draw
from toa_exp.engines import loading
from toa_exp.engines.vllm_process import Process
from toa_exp.ensemble import Agent


class Served:
    """A model with its process and tokenizer; `agent` is the first of those that use it.

    Tokens are made and read in a thread, so that long prompts do not hold up the loop.
    """

    def __init__(self, agent: Agent, process: Process) -> None:
        self.process = process
        self.thread = ThreadPoolExecutor(1)
        self.stop: frozenset[int] = frozenset()
        self._agent = agent
        self._tokenizer: Any = None

    async def tokens(self, draw: Draw) -> list[int]:
        """The prompt of a draw, worded and read as by the transformers engine."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._read, draw)

    async def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without the one that ends them."""
        if tokens and tokens[-1] in self.stop:
            tokens = tokens[:-1]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, loading.text_of, self._tokenizer, list(tokens))

    def _read(self, draw: Draw) -> list[int]:
        whose = f"agent {draw.request.agent!r}"
        if self._tokenizer is None:
            model, revision = self._agent.model, self._agent.revision
            tokenizer = loading.load_tokenizer(model, revision, whose)
            self.stop = loading.stop_tokens(loading.generation_config(model, revision, whose), tokenizer)
            self._tokenizer = tokenizer
        return loading.token_ids(self._tokenizer, draw.messages, whose, reply=True)
