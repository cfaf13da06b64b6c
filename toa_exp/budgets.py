"""Budgets: which searches a problem needs, and what is read off them at each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toa_exp.aio import gather_all
from toa_exp.core import Problem
from toa_exp.cost import Cost
from toa_exp.errors import BadInput, choose
from toa_exp.trajectory import Allowance, Player, Step

UNITS = ["samples", "tokens", "flops", "usd", "seconds"]


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets of a run, ascending, in `unit` a problem.

    In samples a budget is how many the method is given. In any other unit it is a limit: the method
    gets the largest number of samples that the limit pays for, `max_samples` at most.
    """

    unit: str
    values: tuple[float, ...]
    max_samples: int

    @classmethod
    def of(
        cls,
        unit: str,
        samples: int | Sequence[int] | None,
        limit: float | Sequence[float] | None,
        max_samples: int,
    ) -> Budgets:
        """Budgets as configured; raises BadInput for what is missing, superfluous or not above 0."""
        if unit not in UNITS:
            raise choose("budget.unit", unit, UNITS)
        if unit != "samples" and limit is None:
            raise BadInput(f"budget.unit={unit} needs a limit a problem: budget.limit=[<{unit}>, ...]")
        if unit == "samples" and limit is not None:
            raise BadInput("budget.limit needs budget.unit=tokens, flops, usd or seconds")
        given = samples if unit == "samples" else limit
        listed = given if isinstance(given, Sequence) else [given]
        values = [value for value in listed if isinstance(value, int | float) and value > 0]
        if not listed or len(values) < len(listed):
            name = "samples" if unit == "samples" else "limit"
            raise BadInput(f"budget.{name}={given}: give one number above 0 or a list of them")
        if unit == "samples" and not all(isinstance(value, int) for value in values):
            raise BadInput(f"budget.samples={given}: a number of samples is an integer")
        return cls(unit, tuple(sorted(set(values))), max_samples)

    async def readings(self, player: Player, problem: Problem, anytime: bool) -> list[list[Step]]:
        """For every budget the steps of the search that it pays for, possibly none.

        An anytime method runs once, at the largest budget, and its prefixes are read off. Any
        other runs for each budget, since its decisions depend on it.
        """
        if self.unit == "samples":
            if anytime:
                steps = (await player.play(problem, int(self.values[-1]))).steps
                return [steps[: int(value)] for value in self.values]
            runs = [player.play(problem, int(value)) for value in self.values]
            return [trajectory.steps for trajectory in await gather_all(runs)]
        if anytime:
            allowance = Allowance(self.unit, self.values[-1])
            steps = (await player.play(problem, self.max_samples, allowance)).steps
            return [_affordable(steps, Allowance(self.unit, value)) for value in self.values]
        return await gather_all(
            [self._largest(player, problem, Allowance(self.unit, v)) for v in self.values]
        )

    async def _largest(self, player: Player, problem: Problem, allowance: Allowance) -> list[Step]:
        """The steps of the longest complete search that the allowance pays for.

        The number of samples is found by interpolating between one that fits and one that does not,
        until the next average sample would not fit either. What the search for it draws besides is
        not charged, and stays in the store.
        """
        fits: list[Step] = []
        low, high, guess = 0, self.max_samples + 1, 1
        while low + 1 < high:
            trajectory = await player.play(problem, guess, allowance)
            spent = _total(trajectory.steps).spent(allowance.unit)
            if trajectory.complete and spent <= allowance.limit:
                fits, low = trajectory.steps, guess
                if spent and allowance.limit - spent < spent / low:
                    break
                expected = low * allowance.limit / spent if spent else 2 * low
            else:
                high = guess
                expected = len(trajectory.steps) * allowance.limit / spent
            guess = min(max(int(expected), low + 1), high - 1)
        return fits


def _affordable(steps: list[Step], allowance: Allowance) -> list[Step]:
    """The longest prefix that the allowance pays for."""
    spent = Cost()
    for count, step in enumerate(steps):
        spent.add(step.cost)
        if spent.spent(allowance.unit) > allowance.limit:
            return steps[:count]
    return steps


def _total(steps: list[Step]) -> Cost:
    total = Cost()
    for step in steps:
        total.add(step.cost)
    return total
