"""A language model as judge: it is shown the problem and the answer, and gives a score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from toa_exp.build import call, check_type
from toa_exp.core import Problem, Request
from toa_exp.cost import Architecture
from toa_exp.draws import Draw, Message, Sample, Score, canonical, digest, draw_key
from toa_exp.engines.base import Engine
from toa_exp.engines.gpus import Ground
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Permanent, ToaError, told_at
from toa_exp.rewards.base import Range
from toa_exp.tasks.base import Prompts

_TOP = 20  # tokens whose log-probabilities are asked for: as many as endpoints give
# What the engine calls the judge and its settings, and what they are.
_OURS = {
    "ensemble.agents.judge.": "reward.",
    "agent 'judge': options.": "reward.options.",
    "agent 'judge'": "the judge",
    "with options.": "with reward.options.",
    "ensemble.sampling.": "reward.sampling.",
}
_MASS = 0.5  # of the probability must be on scores, else the judge was about to say something else


class Judge:
    """The score that a language model gives in words, higher is better (Zheng et al. 2023).

    `engine` makes the engine that runs `model`, an endpoint or one in this process, with `sampling`.
    `messages` are what it is asked, {prompt} and {draft} being the problem and the answer. `scale` holds
    the lowest and the highest score. What is read is the number in group 1 of the last match of
    `pattern`; with `expected`, which needs an endpoint with log-probabilities, it is the mean over the
    probabilities of all scores at the token that first gives one (Liu et al. 2023, G-Eval), and scores
    are digits. A reply without a score on the scale is asked for anew, `attempts` times in all, and then
    a Permanent error: it never becomes a score. FLOPs are counted from `architecture`, as an agent's, and
    `options` are those of the engine for this model, as an agent's too.
    """

    def __init__(
        self,
        *,
        engine: Callable[..., Engine],
        model: str,
        messages: Sequence[Message],
        scale: list[float],
        pattern: str,
        sampling: Mapping[str, Any],
        expected: bool = False,
        attempts: int = 3,
        revision: str | None = None,
        architecture: Mapping[str, Any] | str | None = None,
        options: Mapping[str, Any] | None = None,
        task: object = None,
    ) -> None:
        if attempts < 1:
            raise BadInput(f"reward.attempts={attempts} must be at least 1")
        if not any("{draft}" in message["content"] for message in messages):
            raise BadInput("reward.messages nowhere has {draft}, the answer that is judged")
        bounds = Range.of(scale)
        assert bounds is not None
        if expected and not (bounds.low >= 0 and bounds.high <= 9):
            raise BadInput(
                f"reward.scale={scale}: with reward.expected=true scores are digits, from 0 to 9, since a "
                f"longer number may be several tokens"
            )
        self._prompts = Prompts({"direct": messages}, "")
        self._pattern = _compiled(pattern)
        self._expected = expected
        self._attempts = attempts
        asked = {"logprobs": True, "top_logprobs": _TOP} if expected else {}
        extra = sampling.get("extra_body") or {}
        check_type("reward.sampling.extra_body", extra, Mapping[str, Any])
        sampling = {**sampling, "extra_body": {**extra, **asked}}
        if not sampling["extra_body"]:
            del sampling["extra_body"]
        make: Any = engine  # a partial, as a YAML with _partial_ gives it
        agent = Agent("judge", model, revision, sampling, architecture=architecture, options=options or {})
        agent.check_sampling()
        deciding = getattr(make.func, "deciding", None)
        self._agent = agent if deciding is None else replace(agent, deciding=deciding(agent, make.keywords))
        self.range: Range | None = bounds
        self.shape: Architecture | None = self._agent.shape()
        settings = {"messages": list(messages), "scale": list(scale), "expected": expected}
        self._fingerprint = {**settings, **({} if expected else {"pattern": pattern})}
        if expected and not hasattr(make.func, "answer"):
            raise BadInput(
                "reward.expected=true needs the log-probabilities of an endpoint; choose "
                "engine@reward.engine=openai, or reward.expected=false"
            )
        with _told():
            self._engine: Any = call(make.func, make.keywords, "reward.engine", agents={"judge": self._agent})
        self.ground: Ground | None = None
        self.join(Ground())  # which is the agents' where these are placed too

    def join(self, ground: Ground, seat: str = "reward") -> None:
        """Be placed together with the agents, under the name `seat`, where the model is run here."""
        if getattr(self._engine, "ground", None) is not None:
            self.ground = ground
            self._engine.join(ground, seat)

    def fingerprint(self) -> Mapping[str, Any]:
        """The model and its sampling, what it is asked and how its reply is read."""
        return {"reward": "llm_judge", **self._agent.fingerprint(), **self._fingerprint}

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; its tokens are all that the judge read and wrote."""
        messages = self._prompts.render(problem, "direct", [text])
        total = Score(math.nan, 0, 0.0)
        sample = None
        for attempt in range(self._attempts):
            sample, content = await self._ask(problem, messages, attempt)
            tokens = total.tokens + sample.usage.prompt_tokens + sample.usage.completion_tokens
            total = replace(total, tokens=tokens, seconds=total.seconds + sample.seconds)
            if sample.failure is not None:
                raise Permanent(
                    f"the judge {self._agent.model!r} does not read an answer to problem {problem.id!r} "
                    f"({sample.failure})"
                )
            found = self._expectation(content) if self._expected else self._number(sample.text)
            if found is not None:
                return replace(total, reward=found)
        assert sample is not None
        raise Permanent(
            f"the judge {self._agent.model!r} gave an answer to problem {problem.id!r} no score on the scale "
            f"in {self._attempts} attempts; its last reply ends {sample.text[-100:]!r}. Mend reward.messages "
            f"or reward.pattern, or give it more room: reward.sampling.max_tokens"
        )

    async def close(self) -> None:
        """Close the engine."""
        await self._engine.close()

    async def _ask(self, problem: Problem, messages: list[Message], attempt: int) -> tuple[Sample, bytes]:
        agent, asked = digest(canonical(self._agent.fingerprint())), digest(canonical(messages))
        key = draw_key(problem.id, agent, asked, attempt, 0)
        draw = Draw(key, problem, Request("judge"), messages, agent, asked, attempt, 0)
        with _told():
            if self._expected:
                sample, content = await self._engine.answer(draw)
                return sample, content
            return await self._engine.sample(draw), b""

    def _number(self, text: str) -> float | None:
        """The last number that the pattern finds, None where there is none or it is off the scale."""
        found = None
        for match in self._pattern.finditer(text):
            found = match
        try:
            value = math.nan if found is None else float(found[1])
        except (TypeError, ValueError):
            return None
        return value if self._on_scale(value) else None

    def _expectation(self, content: bytes) -> float | None:
        """The mean score at the first token that is one; None where the judge gives none."""
        try:
            tokens = json.loads(content)["choices"][0]["logprobs"]["content"]
            place = next((t for t in tokens if self._digit(t["token"]) is not None), None)
            if place is None:
                return None
            chances: dict[int, float] = {}
            for top in place["top_logprobs"]:
                value = self._digit(top["token"])
                if value is not None:  # "4" and " 4" are two tokens
                    chances[value] = chances.get(value, 0.0) + math.exp(top["logprob"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Permanent(
                f"the endpoint of the judge {self._agent.model!r} gives no log-probabilities; choose "
                f"reward.expected=false, or an endpoint that does"
            ) from error
        mass = sum(chances.values())
        if mass < _MASS:
            return None
        return sum(value * chance for value, chance in chances.items()) / mass

    def _digit(self, token: str) -> int | None:
        stripped = token.strip()
        is_digit = len(stripped) == 1 and stripped in "0123456789"
        return int(stripped) if is_digit and self._on_scale(int(stripped)) else None

    def _on_scale(self, value: float) -> bool:
        return self.range is not None and self.range.low <= value <= self.range.high


@contextmanager
def _told() -> Iterator[None]:
    """Tell errors of the engine by where the judge has it, and what they say of an agent of the judge."""
    with told_at("engine", "reward.engine"):
        try:
            yield
        except ToaError as error:
            text = str(error)
            for theirs, ours in _OURS.items():
                text = text.replace(theirs, ours)
            error.args = (text,)
            raise


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"reward.pattern={pattern!r} is no regular expression: {error}") from error
    if compiled.groups < 1:
        raise BadInput(f"reward.pattern={pattern!r} has no group; put the number into (...)")
    return compiled
