"""The lab's problems as tasks that `toa-exp run` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from toa_exp.core import Problem
from toa_exp.draws import Message
from toa_exp.ensemble import Agent, folder_digest
from toa_exp.errors import BadInput, choose
from toa_exp.lab.arithmetic import Arithmetic
from toa_exp.lab.domain import Domain, check_problems, grade, problems
from toa_exp.lab.translation import Translation
from toa_exp.lab.writing import Instructions
from toa_exp.metrics.base import Metric
from toa_exp.metrics.pooled import statistics
from toa_exp.rewards.base import Reward
from toa_exp.tasks.base import Prompts
from toa_exp.tree import normalise

DOMAINS: dict[str, Callable[[], Domain]] = {
    "math": Arithmetic,
    "translation": Translation,
    "instructions": Instructions,
}
_POOLED = "toa_exp.metrics.pooled"


class LabTask:
    """Test problems of one of the DOMAINS, `problems` of them, each of `parts` parts.

    `seed` draws the problems; none of them is ever one that the lab's models were trained on. Metrics
    are accuracy (every part is right) and share (of right parts), for translation also corpus BLEU and
    chrF. With a `judge`, a reward model, and a `baseline`, a model folder, there are the win rate over the
    baseline's greedy answers in per cent (a comparison counts as the logistic function of the difference
    of the judge's scores) and the length-controlled one.
    """

    def __init__(
        self,
        *,
        domain: str,
        parts: int,
        problems: int,
        seed: int,
        prompts: Mapping[str, Any],
        judge: Reward | None = None,
        baseline: str | None = None,
    ) -> None:
        if domain not in DOMAINS:
            raise choose("task.domain", domain, list(DOMAINS))
        check_problems(parts, problems)
        if seed < 0:
            raise BadInput(f"task.seed={seed}: give a number, 0 or more")
        if (judge is None) != (baseline is None):
            raise BadInput("task.judge and task.baseline go together: give both or none")
        self._domain = DOMAINS[domain]()
        self._parts, self._problems, self._seed = parts, problems, seed
        self._prompts = Prompts(**prompts)
        self._judge = judge
        self._baseline = baseline
        self._baselines: dict[str, tuple[str, float]] = {}
        self.pools = {}
        if judge is not None:
            self.pools["lc_win_rate"] = f"{_POOLED}.lc_win_rate"
        if domain == "translation":
            self.pools |= {"bleu": f"{_POOLED}.bleu", "chrf": f"{_POOLED}.chrf"}

    def count(self) -> int:
        """How many problems there are."""
        return self._problems

    def check_agents(self, agents: Iterable[Agent]) -> None:
        """Raise BadInput for agents that cannot read the problems."""
        simulated = [agent.name for agent in agents if agent.simulated]
        if simulated:
            raise BadInput(
                f"task lab_{self._domain.name} asks for answers in words, which simulated agents "
                f"({', '.join(simulated)}) do not write; choose ensemble=lab, or another ensemble of models"
            )

    def problems(self) -> Iterator[Problem]:
        """The problems, numbered from 0; the reference is a right answer, in mathematics its last total."""
        domain = self._domain
        stream = problems(domain, f"test/{self._seed}", self._parts, test=True)
        for number, prompt in enumerate(islice(stream, self._problems)):
            parts = domain.parse(prompt)
            rng = Random(f"reference/{prompt}")
            solution = domain.solution(parts, [part.answer(rng) for part in parts])
            yield Problem(str(number), prompt, domain.final(solution))

    def pairs(self) -> Iterator[tuple[Problem, str, str]]:
        """Problems, each with a right answer and with the same one with slips in every part."""
        for problem in self.problems():
            parts = self._domain.parse(problem.prompt)
            rng = Random(f"pairs/{problem.prompt}")
            right, wrong = (
                [make(rng) for make in makes]
                for makes in ([part.answer for part in parts], [part.slip for part in parts])
            )
            solution = self._domain.solution
            yield problem, solution(parts, right), solution(parts, wrong)

    def render(self, problem: Problem, template: str, drafts: Sequence[str]) -> list[Message]:
        """The chat messages of a template of the task's prompts."""
        return self._prompts.render(problem, template, drafts)

    async def score(self, problem: Problem, text: str) -> Mapping[str, Metric]:
        """The metrics of one answer."""
        whole, share = grade(self._domain, problem.prompt, text)
        metrics: dict[str, Metric] = {}
        if self._judge is not None:
            metrics |= await self._compare(problem, text, self._judge)
        if self._domain.name == "translation":
            metrics |= {name: statistics(name, text, problem.reference) for name in ("bleu", "chrf")}
        return {**metrics, "accuracy": whole, "share": share}

    def fingerprint(self) -> Mapping[str, Any]:
        """Domain, what counts as right, judge and baseline."""
        fingerprint: dict[str, Any] = {"lab": self._domain.name, "right": "every part"}
        if self._judge is not None and self._baseline is not None:
            fingerprint["judge"] = dict(self._judge.fingerprint())
            fingerprint["baseline"] = folder_digest(Path(self._baseline))
        return fingerprint

    def final_answer(self, text: str) -> str | None:
        """In mathematics the last total, else the whole text."""
        return self._domain.final(text)

    async def close(self) -> None:
        """Stop the judge."""
        if self._judge is not None:
            await self._judge.close()

    async def _compare(self, problem: Problem, text: str, judge: Reward) -> dict[str, Metric]:
        if not self._baselines:
            self._baselines = self._answers()
        answer, score = self._baselines[problem.id]
        try:
            if math.isnan(score):
                score = (await judge.score(problem, answer)).reward
                self._baselines[problem.id] = answer, score
            given = (await judge.score(problem, text)).reward
        except BadInput as error:  # which speaks of a reward, and that of the run is another
            raise BadInput(f"task.judge: {error}") from error
        won = normalise(given - score, 1.0)
        return {"win_rate": 100.0 * won, "lc_win_rate": [1.0, won, float(len(text) - len(answer))]}

    def _answers(self) -> dict[str, tuple[str, float]]:
        """The baseline's greedy answers by problem, unscored."""
        import torch

        from toa_exp.engines import loading

        loading.import_libraries()
        from toa_exp.lab.decoding import sample
        from toa_exp.lab.folders import load
        from toa_exp.lab.writer import Writer

        assert self._baseline is not None
        loading.check_model(self._baseline, "task.baseline")
        network = load(Path(self._baseline), "task.baseline")
        writer = Writer(loading.load_tokenizer(self._baseline, None, "task.baseline"))
        chosen = list(self.problems())
        answers = sample(
            network,
            [writer.prompt(problem.prompt) for problem in chosen],
            torch.Generator(),
            end=writer.end,
            temperature=0.0,
        )
        return {
            problem.id: (writer.decode(ids), math.nan) for problem, ids in zip(chosen, answers, strict=True)
        }
