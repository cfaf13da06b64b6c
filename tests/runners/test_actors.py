"""Requests to actors: who is asked, and what becomes of them where one dies."""

import asyncio
from contextlib import nullcontext

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, WorkerCrashedError  # noqa: E402

from toa_exp.core import Problem, Reply, Request, Usage  # noqa: E402
from toa_exp.draws import Draw  # noqa: E402
from toa_exp.errors import BadInput, Unavailable  # noqa: E402
from toa_exp.runners import actors, cluster  # noqa: E402
from toa_exp.runners.actors import Actors, Replicas  # noqa: E402
from toa_exp.runners.cluster import Spread  # noqa: E402
from toa_exp.runners.placement import Share  # noqa: E402


class Method:
    def __init__(self, call):
        self.remote = call


class FakeActor:
    """Answers with its name; `faults` come first, and `away` is how often it is not back yet."""

    def __init__(self, name, faults=(), away=0):
        self.faults = list(faults)
        self.asked = 0
        self.away = away
        self.ask = Method(self._ask)
        self.ready = Method(self._ready)
        self._name = name

    async def _ask(self, *given):
        self.asked += 1
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        await asyncio.sleep(0.01)
        return self._name

    async def _ready(self):
        self.away -= 1
        if self.away >= 0:
            raise UNAVAILABLE
        if self.away < -1:
            raise ActorDiedError()


UNAVAILABLE = ActorUnavailableError("it is away", None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(actors, "_PING", 0.01)


def ask(*fakes, times=1, patience=5.0, start=0):
    async def run():
        replicas = Replicas("agent 'a'", fakes, patience, start)
        return await asyncio.gather(*(replicas.ask("draw") for _ in range(times)))

    return asyncio.run(run())


def test_the_one_with_fewest_under_way_is_asked():
    one, two = FakeActor("one"), FakeActor("two")
    assert sorted(ask(one, two, times=6)) == ["one"] * 3 + ["two"] * 3
    assert ask(one, two, start=1) == ["two"]


def test_another_answers_for_one_that_died():
    dead, alive = FakeActor("dead", [UNAVAILABLE] * 3, away=99), FakeActor("alive")
    assert ask(dead, alive, times=4) == ["alive"] * 4
    assert dead.asked == 2  # both that were under way


def test_one_that_is_started_again_is_waited_for():
    assert ask(FakeActor("one", [UNAVAILABLE], away=3)) == ["one"]


def test_no_actor_left_is_a_fault_that_may_pass():
    with pytest.raises(Unavailable, match="agent 'a': every actor died"):
        ask(FakeActor("one", [ActorDiedError()] * 9, away=-1))
    with pytest.raises(Unavailable, match=r"runner\.patience"):
        ask(FakeActor("one", [UNAVAILABLE] * 9, away=9999), patience=0.05)


def test_what_an_engine_raises_is_raised_here():
    error = RayTaskError("ask", "a traceback", BadInput("no such model"))
    with pytest.raises(BadInput, match="no such model"):
        ask(FakeActor("one", [error]))


def test_no_more_of_a_tree_is_sent_than_the_parents():
    problem = Problem("p", "What?")
    root = Reply(Request("a"), "root", 0.5, Usage(1, 1))
    parent = Reply(Request("a", "refine", (root,)), "parent", 0.7, Usage(1, 1))
    draw = Draw(b"k", problem, Request("b", "refine", (parent,)), [], b"", b"", 0, 0)
    (sent,) = actors._light(draw).request.parents
    assert (sent.text, sent.reward, sent.request) == ("parent", 0.7, Request("a", "refine"))


def test_a_shard_that_kills_every_worker_is_given_up(monkeypatch):
    class Place:
        retries, worker = 2, Share()

    tries = []

    async def crash(*given):
        tries.append(given)
        raise WorkerCrashedError()

    monkeypatch.setattr(cluster, "_shard_task", lambda share: Method(crash))
    part = cluster._Part([Problem("p", "?"), Problem("q", "?")], 0)
    spread = Spread(Place(), None)
    shard = asyncio.run(spread._solve(None, Actors({}, [], 1.0), part))
    assert len(tries) == 3 and shard.counts.samples == 0
    assert [type(result) for result in shard.results] == [Unavailable, Unavailable]
    assert "3 workers were lost" in str(shard.results[0])


def placing(what, seconds):
    """Something that Ray places after some seconds."""
    return what, Method(lambda: asyncio.sleep(seconds))


def test_the_largest_are_started_first():
    shares = [("a", Share(num_gpus=1)), ("b", Share(num_gpus=4)), (None, Share(num_gpus=1)), ("c", Share())]
    groups = [[name for name, _ in group] for group in cluster.largest_first(shares)]
    assert groups == [["b"], ["a", None], ["c"]]


def test_who_is_not_placed_is_named(monkeypatch, caplog):
    monkeypatch.setattr(cluster, "_WORD", 0.05)
    asyncio.run(cluster.placed([placing("a", 0), placing("b", 0.2), placing("b", 0.2), placing("c", 0.2)]))
    (line,) = [record.getMessage() for record in caplog.records if "waiting" in record.message][:1]
    assert "place 2 x b, 1 x c." in line and "`ray status`" in line
    caplog.clear()
    asyncio.run(cluster.placed([placing("a", 0)]))
    assert not caplog.text


@pytest.mark.parametrize(
    ("problems", "workers", "size"), [(60_000, 16, 512), (100, 4, 25), (101, 4, 26), (2, 4, 1), (0, 4, 1)]
)
def test_a_shard_leaves_problems_for_every_worker(problems, workers, size):
    assert cluster.shard_size(problems, workers, 512) == size


class Ground:
    def plan(self):
        raise BadInput("it does not fit")


@pytest.mark.parametrize("there", [Ground(), None])
def test_an_actor_plans_before_the_first_draw(monkeypatch, there):
    class Planner:
        ground = there

        async def sample(self, draw):
            return draw

    class Place:
        def engine(self, config, agents):
            return Planner()

    class Settings:
        def __init__(self):
            self.config = {"ensemble": None}

        def enter(self):
            return None

    monkeypatch.setattr(actors, "Local", Place)
    monkeypatch.setattr(actors, "agents_of", lambda ensemble: {"a": None})
    with pytest.raises(BadInput, match="it does not fit") if there else nullcontext():
        asyncio.run(actors.Actor(Settings(), "a").ready())
