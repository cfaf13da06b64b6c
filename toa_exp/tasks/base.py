"""What the runner asks of a task, and prompts as data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from toa_exp.core import Problem
from toa_exp.draws import Message
from toa_exp.errors import BadInput, choose
from toa_exp.metrics.base import Metric


class Task(Protocol):
    """Problems, the wording of requests, and how an answer is judged.

    It may have a method `pairs` that gives problems, each with a good and a bad answer, as rewards are
    tried on (rewards/warmup.py); else its references are taken. A method `check_agents`, where it has
    one, is given the run's agents, and raises BadInput for those that it has nothing to ask. A coroutine
    `ballots`, where it has one, gives what each of several texts votes for, equal answers as equal
    strings and None for none; else votes are of final answers.
    """

    def count(self) -> int:
        """How many problems there are. Raises BadInput where the data cannot be used."""
        ...

    def problems(self) -> Iterator[Problem]:
        """The problems in a fixed order, one at a time."""
        ...

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[Message]:
        """The chat messages that ask for an answer, given earlier ones."""
        ...

    async def score(self, problem: Problem, text: str) -> Mapping[str, Metric]:
        """The metrics of `text` as the answer, the same names for every problem; higher is better.

        A metric that is no mean over answers is a list of statistics, and the task then has an
        attribute `pools` that names the function of metrics/pooled.py for it.
        """
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides its metrics, beside the problem and the text."""
        ...

    def final_answer(self, text: str) -> str | None:
        """The final answer that a text states, normalised so that equal ones are equal strings."""
        ...

    async def close(self) -> None:
        """Free what the task holds."""
        ...


def references_of(problem: Problem) -> list[str]:
    """The references of a problem that are texts: one, several or none."""
    found = problem.reference
    given = list(found) if isinstance(found, list | tuple) else [found]
    return [one for one in given if isinstance(one, str)]


class Prompts:
    """Templates of chat messages, as a task's YAML has them.

    `templates` maps a name (direct, refine, aggregate, or a task's own) to a list of messages. In
    their content {prompt} is the problem's prompt, {meta.<name>} a field of its meta, {draft} the
    one earlier answer and {drafts} all of them, each in `each_draft` with {number} and {draft}.
    Other braces stay as they are.
    """

    _PLACE = re.compile(r"\{(prompt|drafts|draft|number|meta\.\w+)\}")

    def __init__(self, templates: Mapping[str, Sequence[Message]], each_draft: str) -> None:
        if "direct" not in templates:
            raise BadInput("task.prompts.templates has no `direct`; every task needs one")
        for name, messages in templates.items():
            if not any("{prompt}" in message["content"] for message in messages):
                raise BadInput(f"task.prompts.templates.{name} nowhere has {{prompt}}, the problem's prompt")
        self._templates = templates
        self._each_draft = each_draft

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[Message]:
        """The messages of a template; raises BadInput where it does not exist or cannot be filled."""
        if template not in self._templates:
            raise choose("prompt template", template, sorted(self._templates))
        values: dict[str, Any] = {"prompt": problem.prompt}
        if len(drafts) == 1:
            values["draft"] = drafts[0]
        if drafts:
            numbered = enumerate(drafts, start=1)
            parts = [self._fill(self._each_draft, {"number": n, "draft": d}, problem) for n, d in numbered]
            values["drafts"] = "\n\n".join(parts)
        return [
            {"role": message["role"], "content": self._fill(message["content"], values, problem)}
            for message in self._templates[template]
        ]

    def _fill(self, content: str, values: Mapping[str, Any], problem: Problem) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            found = problem.meta if name.startswith("meta.") else values
            key = name.removeprefix("meta.")
            if key not in found:
                raise BadInput(
                    f"a prompt template uses {{{name}}}, which problem {problem.id!r} does not have"
                )
            return str(found[key])

        return self._PLACE.sub(value, content)
