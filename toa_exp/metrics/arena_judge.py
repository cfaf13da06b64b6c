"""Arena-Hard's judging: a model compares answers with a baseline's, in both orders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toa_exp.aio import gather_all
from toa_exp.core import Problem, Request
from toa_exp.draws import Draw, Message, canonical, digest, draw_key
from toa_exp.engines.base import Engine
from toa_exp.errors import BadInput
from toa_exp.metrics.arena import battles_of, games, verdict
from toa_exp.metrics.base import Metric
from toa_exp.metrics.of_run import Answered
from toa_exp.metrics.style import STYLE, difference, style
from toa_exp.sampler import Sampler
from toa_exp.tasks.questions import field
from toa_exp.tasks.source import rows

_ID = ["uid", "question_id", "id"]
_TEXT = ["output", "messages.1.content.answer", "messages.1.content", "choices.0.turns.0.content"]


class ArenaHard:
    """The win rate over a baseline in per cent, as a judge's verdicts give it (Li et al. 2024).

    The judge is an agent: its judgements are draws in the store, made once and counted there. `prompt`
    are its messages, with {question}, {first} and {second}; it states a verdict from [[A>>B]] to
    [[B>>A]], and much better counts three battles; where one of the two games has no verdict, neither
    counts. The baseline's answers come from the file `baseline`, else from `hub`. `score` is over the
    games that count, `judge_failed` the share of the others, and `judge_tokens` what the two games of an
    answer took, which is no part of the run's cost. `style_controlled_score` is the rate at no
    difference of style, with the `length` of answers in tokens or characters.
    """

    needs: tuple[str, ...] = ("sampler",)
    pools: Mapping[str, str] = {
        "score": "toa_exp.metrics.pooled.judged_win_rate",
        "style_controlled_score": "toa_exp.metrics.style.controlled_win_rate",
    }

    def __init__(
        self,
        *,
        engine: Engine,
        sampler: Sampler,
        prompt: Sequence[Message],
        length: str = "tokens",
        baseline: str | None = None,
        hub: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine = engine
        self._sampler = sampler
        self._prompt = prompt
        self._length = length
        self._file = baseline
        self._baseline = _answers(baseline, dict(hub) if hub else None)

    def fingerprint(self) -> Mapping[str, Any]:
        """The judge, its prompt, the baseline's file, and how style is controlled for."""
        judge = self._engine.agents["judge"].fingerprint()
        prompt = digest(canonical(list(self._prompt))).hex()[:8]
        return {
            "judge": judge,
            "prompt": prompt,
            "baseline": self._file,
            "length": self._length,
            "style": STYLE,
        }

    async def measure(self, answers: Sequence[Answered]) -> list[Mapping[str, Metric]]:
        """The statistics of both games of each answer."""
        return await gather_all([self._measure(answered.problem, answered.text) for answered in answers])

    async def close(self) -> None:
        """Close the judge's engine."""
        await self._engine.close()

    async def _measure(self, problem: Problem, text: str) -> Mapping[str, Metric]:
        if problem.id not in self._baseline:
            raise BadInput(
                f"the baseline has no answer to problem {problem.id!r}; give metric.baseline=<file>"
            )
        other = self._baseline[problem.id]
        orders = [(text, other), (other, text)]
        samples = await gather_all([self._sample(problem, *order) for order in orders])
        labels = games([None if sample.failure else verdict(sample.text) for sample in samples])
        won = [battle.won for battle in battles_of(labels[0], "answer", "baseline")]
        won += [1.0 - battle.won for battle in battles_of(labels[1], "baseline", "answer")]
        valid = [bool(battles_of(label, "", "")) for label in labels]
        apart = difference(style(text, self._length), style(other, self._length))
        tokens = sum(s.usage.prompt_tokens + s.usage.completion_tokens for s in samples)
        return {
            "score": [float(len(won)), sum(won)],
            "style_controlled_score": [float(len(won)), sum(won), *apart],
            "judge_failed": 1.0 - sum(valid) / len(valid),
            "judge_tokens": float(tokens),
        }

    async def _sample(self, problem: Problem, first: str, second: str) -> Any:
        """The judge's text on one order of answers."""
        values = {"{question}": problem.prompt, "{first}": first, "{second}": second}
        messages = [{"role": m["role"], "content": _filled(m["content"], values)} for m in self._prompt]
        prompt = digest(canonical(messages))
        agent = self._sampler.agent_digests["judge"]
        key = draw_key(problem.id, agent, prompt, 0, 0)
        draw = Draw(key, problem, Request("judge", "compare"), messages, agent, prompt, 0, 0)
        sample, _ = await self._sampler.answer(draw)
        return sample


def _filled(content: str, values: Mapping[str, str]) -> str:
    """The content with its places filled, once each: what fills them may have braces too."""
    return re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], content)


def _answers(path: str | None, hub: dict[str, Any] | None) -> dict[str, str]:
    """The baseline's answers by id, of arena-hard-auto's model_answer or rows of id and output."""
    found: dict[str, str] = {}
    for number, row in enumerate(rows(path, hub, "metric.baseline"), start=1):
        identifier, text = field(row, _ID), field(row, _TEXT)
        if identifier is None or not isinstance(text, str):
            raise BadInput(f"metric.baseline, row {number}: give an id ({', '.join(_ID)}) and 'output'")
        if str(identifier) in found:
            raise BadInput(f"metric.baseline, row {number}: the id {str(identifier)!r} occurs twice")
        found[str(identifier)] = text
    return found
