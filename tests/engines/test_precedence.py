"""Whose turn it is to write, by a clock that goes on with every step of models that share one thread."""

from random import Random

import pytest

from toa_exp.engines.precedence import Precedence

PLACES = 16
STEP, ROW = 1.2, 0.07  # milliseconds of a step, and of each row in it; as of the lab's models
Request = tuple[int, int]  # its model, and the tokens of its text


class Model:
    """A batch and what waits for a place in it."""

    def __init__(self) -> None:
        self.requests: list[list] = []  # number, problem and tokens left of each
        self.rows: list[list] = []

    @property
    def demand(self) -> int:
        return min(PLACES, len(self.requests))

    @property
    def oldest(self) -> int:
        return self.requests[0][0]

    def step(self) -> list[list]:
        self.rows = self.requests[:PLACES]
        for row in self.rows:
            row[2] -= 1
        done = [row for row in self.rows if row[2] == 0]
        self.requests = [row for row in self.requests if row[2]]
        return done


class Fullest:
    """The scheme to be better than: the fullest batch, always."""

    def choose(self, models):
        return max(models, key=lambda model: model.demand)

    def finished(self, tokens: int) -> None:
        pass


def milliseconds(searches: list[list[list[Request]]], order: Precedence | Fullest) -> float:
    """What searches take, each a list of layers of requests that are made when the last layer is done."""
    models = [Model() for _ in range(4)]
    left = [iter(layers) for layers in searches]
    lengths, waiting, passed = {}, [0] * len(searches), 0.0

    def go_on(problem: int) -> None:
        for model, tokens in next(left[problem], []):
            models[model].requests.append([len(lengths), problem, tokens])
            lengths[len(lengths)] = tokens
            waiting[problem] += 1

    for problem in range(len(searches)):
        go_on(problem)
    while at_work := [model for model in models if model.demand]:
        model = order.choose(at_work)
        done = model.step()
        passed += STEP + ROW * len(model.rows)
        for number, problem, _ in done:
            order.finished(lengths[number])
            waiting[problem] -= 1
            if not waiting[problem]:
                go_on(problem)
    assert not any(waiting) and all(next(layers, None) is None for layers in left)
    return passed


def saturation(searches: list[list[list[Request]]], order: Precedence | Fullest) -> float:
    together = [[[request for layer in layers for request in layer]] for layers in searches]
    return milliseconds(together, Precedence()) / milliseconds(searches, order)


def even(rng: Random) -> int:
    return rng.randrange(80, 110)


def heavy_tailed(rng: Random) -> int:
    return min(2000, max(1, round(rng.lognormvariate(4, 1.2))))


def in_turn(problems: int, length) -> list[list[list[Request]]]:
    """Eight requests in sequence, of each model in turn: what TOA asks for while rewards differ little."""
    rng = Random(0)
    return [[[(number % 4, length(rng))] for number in range(8)] for _ in range(problems)]


def by_chance(problems: int, length, weights: list[int]) -> list[list[list[Request]]]:
    """Eight requests in sequence, with models asked as often as `weights` say."""
    rng = Random(0)
    return [[[(rng.choices(range(4), weights)[0], length(rng))] for _ in range(8)] for _ in range(problems)]


@pytest.mark.parametrize(
    "searches",
    [
        pytest.param(in_turn(512, even), id="in turn"),
        pytest.param(in_turn(512, heavy_tailed), id="in turn, heavy-tailed"),
        pytest.param(by_chance(512, even, [37, 27, 18, 18]), id="by chance"),
        pytest.param(by_chance(512, heavy_tailed, [37, 27, 18, 18]), id="by chance, heavy-tailed"),
        pytest.param(by_chance(512, even, [80, 10, 5, 5]), id="mostly one"),
        pytest.param(by_chance(512, heavy_tailed, [80, 10, 5, 5]), id="mostly one, heavy-tailed"),
    ],
)
def test_searches_of_many_problems_keep_batches_full(searches):
    assert saturation(searches, Precedence()) >= 0.97


def test_few_problems_gain_by_staying_together():
    searches = in_turn(32, even)
    assert saturation(searches, Precedence()) > 1.2 * saturation(searches, Fullest())


def test_the_oldest_goes_first_and_gives_way_to_fuller_ones_after_half_a_text():
    order, lone, full = Precedence(), Model(), Model()
    lone.requests = [[0, 0, 1000]]
    full.requests = [[number, 0, 1000] for number in range(1, 9)]
    order.finished(70)
    chosen = [order.choose([full, lone]) for _ in range(100)]
    assert chosen == [lone] * 40 + [full] * 60  # an eighth of each step is not lost: 40 * 7/8 = 35
    full.requests = full.requests[:1]
    assert order.choose([full, lone]) is lone
