"""Requests to actors: who is asked, and what becomes of them where one dies."""

import asyncio
from contextlib import closing, nullcontext
from types import SimpleNamespace

import pytest
from helpers import ToyTask
from omegaconf import OmegaConf

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, WorkerCrashedError  # noqa: E402

from toa_exp.core import Problem, Reply, Request, Usage  # noqa: E402
from toa_exp.draws import Draw  # noqa: E402
from toa_exp.errors import BadInput, Permanent, Unavailable  # noqa: E402
from toa_exp.patience import Patience  # noqa: E402
from toa_exp.runners import actors, cluster  # noqa: E402
from toa_exp.runners.actors import Actors, Replicas  # noqa: E402
from toa_exp.runners.cluster import Spread  # noqa: E402
from toa_exp.runners.local import Local  # noqa: E402
from toa_exp.runners.placement import Share  # noqa: E402
from toa_exp.scorer import Scorer  # noqa: E402
from toa_exp.store import Store  # noqa: E402


class Method:
    def __init__(self, call):
        self.remote = call


class FakeActor:
    """Answers with its name; `faults` come first, and `away` is how often it is not back yet.

    Each time that it is asked whether it is back it raises `start`, where there is one.
    """

    def __init__(self, name, faults=(), away=0, start=None):
        self.start = start
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
        if self.start is not None:
            raise RayTaskError("ready", "a traceback", self.start)
        if self.away >= 0:
            raise UNAVAILABLE
        if self.away < -1:
            raise ActorDiedError()


UNAVAILABLE = ActorUnavailableError("it is away", None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(actors, "_PING", 0.01)
    monkeypatch.setattr(actors, "_SETTLES", 0.0)


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


@pytest.mark.parametrize("fault", [BadInput("no folder"), Permanent("no memory"), ValueError("a bug")])
def test_one_that_cannot_be_started_again_is_not_waited_for(fault):
    broken = FakeActor("one", [UNAVAILABLE] * 9, start=fault)
    with pytest.raises(type(fault), match=str(fault)):
        ask(broken)
    assert broken.away == -1  # it was asked once
    assert ask(FakeActor("two", [UNAVAILABLE] * 9, start=fault), FakeActor("other"), times=3) == ["other"] * 3


def test_what_the_one_that_died_held_may_be_free_a_little_later(monkeypatch):
    monkeypatch.setattr(actors, "_SETTLES", 60.0)
    actor = FakeActor("one", [UNAVAILABLE], away=1, start=BadInput("it does not fit"))

    async def ready():
        fault, actor.start = actor.start, None
        if fault is not None:
            raise RayTaskError("ready", "a traceback", fault)

    actor.ready = Method(ready)
    assert ask(actor) == ["one"]
    actor.faults, actor.start = [UNAVAILABLE], BadInput("it does not fit")

    async def twice():
        replicas = Replicas("agent 'a'", [actor], 5.0, 0)
        await replicas.ask("draw")
        return replicas._replicas[0].fault

    assert asyncio.run(twice()) is None  # what is over is not told of a later death


def test_why_one_is_not_back_is_told_once_it_was_waited_for():
    broken = FakeActor("one", [UNAVAILABLE] * 9, start=Unavailable("the GPUs do not answer"))
    with pytest.raises(Unavailable, match=r"not back in 0 s \(the GPUs do not answer\).*runner\.patience"):
        ask(broken, patience=0.1)
    assert broken.away < -1


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
    shard = asyncio.run(spread._solve(None, Actors({}, [], 1.0), None, part))
    assert len(tries) == 3 and shard.counts.samples == 0
    assert [type(result) for result in shard.results] == [Unavailable, Unavailable]
    assert "3 workers were lost" in str(shard.results[0])


def placing(what, there=lambda: True):
    """Something that Ray places once it is `there`."""

    async def place():
        while not there():
            await asyncio.sleep(0.01)

    return what, Method(place)


def test_the_largest_are_started_first():
    shares = [("a", Share(num_gpus=1)), ("b", Share(num_gpus=4)), (None, Share(num_gpus=1)), ("c", Share())]
    nodes = [{"GPU": 4.0, "fast": 1.0}, {"GPU": 4.0}]
    groups = [[name for name, _ in group] for group in cluster.hardest_first(nodes, shares)]
    assert groups == [["b"], ["a", None], ["c"]]
    fast = ("d", Share(num_gpus=1, resources={"fast": 1}))  # on one node, which the others might fill
    groups = [[name for name, _ in group] for group in cluster.hardest_first(nodes, [*shares, fast])]
    assert groups == [["d"], ["b"], ["a", None], ["c"]]


def test_who_is_not_placed_is_named(monkeypatch, caplog):
    monkeypatch.setattr(cluster, "_WORD", 0.05)
    late = [placing(what, lambda: "waiting" in caplog.text) for what in ("b", "b", "c")]
    asyncio.run(cluster.placed([placing("a"), *late]))
    (line,) = [record.getMessage() for record in caplog.records if "waiting" in record.message][:1]
    assert "place 2 x b, 1 x c." in line and "`ray status`" in line
    caplog.clear()
    asyncio.run(cluster.placed([placing("a")]))
    assert not caplog.text


@pytest.mark.parametrize("dies", ["__ray_ready__", "ready"])
def test_who_dies_while_it_starts_is_named(monkeypatch, dies):
    class Place:
        patience, reward_share = 1.0, Share()
        agent_share = staticmethod(lambda name: Share())

    async def well():
        pass

    async def die():
        raise ActorDiedError()

    def start(spread, settings, agent, share):
        methods = dict.fromkeys(["__ray_ready__", "ready", "close"], Method(well))
        return [SimpleNamespace(**(methods | ({} if agent is None else {dies: Method(die)})))]

    async def run():
        job = SimpleNamespace(engine=SimpleNamespace(agents=["ash"]))
        async with Spread(Place(), job)._actors(None):
            pass

    ended = []
    monkeypatch.setattr(Spread, "_start", start)
    monkeypatch.setattr(cluster, "_resources", list)
    monkeypatch.setattr(ray, "kill", ended.append)
    with pytest.raises(Unavailable, match=r"agent 'ash' ended while it was started \(The actor died.*memory"):
        asyncio.run(run())
    assert len(ended) == 2


@pytest.mark.parametrize(
    ("problems", "workers", "size"), [(60_000, 16, 512), (100, 4, 25), (101, 4, 26), (2, 4, 1), (0, 4, 1)]
)
def test_a_shard_leaves_problems_for_every_worker(problems, workers, size):
    assert cluster.shard_size(problems, workers, 512) == size


class Ground:
    def plan(self):
        raise BadInput("it does not fit")


@pytest.mark.parametrize("there", [Ground(), None])
@pytest.mark.parametrize("agent", ["a", None])
def test_an_actor_plans_before_the_first_draw(monkeypatch, there, agent):
    class Planner:
        ground = there

        async def sample(self, draw):
            return draw

    class Place:
        def engine(self, config, agents):
            return Planner()

        def reward(self, config, task):
            return Planner()

    class Settings:
        def __init__(self):
            self.config = {"ensemble": None}

        def enter(self):
            return None

    monkeypatch.setattr(actors, "Local", Place)
    monkeypatch.setattr(actors, "agents_of", lambda ensemble: {"a": None})
    monkeypatch.setattr(actors, "task_of", lambda config: None)
    with pytest.raises(BadInput, match="it does not fit") if there else nullcontext():
        asyncio.run(actors.Actor(Settings(), agent).ready())


def simulated(noise):
    target = "toa_exp.rewards.simulator.SimulatedReward"
    return {"_target_": target, "noise": noise, "scale": 0.1, "tokens_per_second": 1.0}


def ensemble(members, rule):
    moments = {name: {"mean": 0.0, "sd": noise + 1} for noise, name in enumerate(members)}
    target, stated = "toa_exp.rewards.ensemble.Ensemble", moments if rule == "standardised_mean" else None
    return {"_target_": target, "_recursive_": False, "members": members, "rule": rule, "moments": stated}


@pytest.mark.parametrize("rule", ["minimum", "standardised_mean"])
def test_scores_of_a_rewards_members_are_stored_as_on_one_machine(tmp_path, rule):
    inner = ensemble({"d": simulated(0.3), "e": simulated(0.4)}, rule)
    given = ensemble({"b": simulated(0.1), "c": simulated(0.2), "f": inner}, rule)
    config, problem = OmegaConf.create({"reward": given}), Problem("p", "?")
    asked = []

    async def scores(reward, path):
        with closing(Store(path)) as store:
            scorer = Scorer(reward, store, Patience(0, 0.0, lambda: None))
            found = [await scorer(problem, f"Simulated quality: {quality}") for quality in (1.0, 0.2)]
            rows = [*store.rows("SELECT key, reward, tokens FROM scores ORDER BY key")]
        await reward.close()
        return found, rows

    async def run():
        actor = actors.Actor(None, None)
        actor._part = Local().reward(config, ToyTask(1))

        async def there(*given):
            asked.append(given[2:])
            return await actor._score(*given)

        fake = SimpleNamespace(ask=Method(there))
        remote = actors.Remote(Actors({}, [fake], 1.0), 0).reward(config, ToyTask(1))
        return await scores(remote, tmp_path / "remote"), await scores(actor._part, tmp_path / "local")

    remote, local = asyncio.run(run())
    assert remote == local and len(local[1]) == 2 * 6
    assert set(asked) == {("b",), ("c",), ("f", "d"), ("f", "e")}
