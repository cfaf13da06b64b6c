"""The contract of methods, over every configuration in conf/method."""

import ast
import inspect
import itertools
import json
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest
from helpers import PROBLEM, play, replies
from omegaconf import OmegaConf

import toa_exp
from toa_exp.build import build_function
from toa_exp.core import Reply, Usage
from toa_exp.methods.moa import moa
from toa_exp.methods.prs import prs
from toa_exp.methods.sequential import sequential
from toa_exp.methods.toa import toa

CONF = Path(toa_exp.__file__).parent / "conf" / "method"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
VARIANTS = {
    "prs": [{"ensemble": True}],
    "moa": [{"layers": 1}, {"layers": 2}, {"layers": 4, "num_aggregation": 2}],
    "toa": [{"width": 1}, {"width": 0.5}, {"alpha": 2.0, "tau": 1.0, "width": 3}],
}
METHODS = [
    pytest.param(
        partial(build_function(OmegaConf.load(CONF / f"{name}.yaml"), "method"), **keywords),
        id="-".join([name, *(f"{key}={value}" for key, value in keywords.items())]),
    )
    for name in NAMES
    for keywords in [{}, *VARIANTS.get(name, [])]
]


def anytime(method):
    return getattr(method.func if hasattr(method, "func") else method, "anytime", False)


@pytest.mark.parametrize("method", METHODS)
def test_asks_for_exactly_the_budget(method):
    for agents, budget in itertools.product(range(1, 6), [*range(1, 25), 31, 64]):
        names = [f"a{i}" for i in range(agents)]
        for failing in (0.0, 0.3, 1.0):
            asked = play(method(PROBLEM, names, budget, Random(1)), replies(budget, failing))
            assert len(asked) == budget
            assert {request.agent for request in asked} <= set(names)


@pytest.mark.parametrize("method", METHODS)
def test_never_builds_on_a_failed_reply(method):
    asked = play(method(PROBLEM, ["a", "b", "c"], 60, Random(1)), replies(3, failing=0.4))
    for request in asked:
        assert all(parent.failure is None for parent in request.parents)
        assert (request.template == "direct") == (not request.parents)


@pytest.mark.parametrize("method", METHODS)
def test_rng_is_its_only_chance(method):
    first, second = (play(method(PROBLEM, ["a", "b", "c"], 40, Random(5)), replies(2)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("method", METHODS)
def test_an_anytime_run_is_a_prefix_of_a_longer_one(method):
    if not anytime(method.func):
        pytest.skip("its shape depends on the budget")

    def short(budget):
        known = {}

        def answer(request):  # a reply is what it answers, so that both runs see the same
            key = (request.agent, tuple(parent.text for parent in request.parents), len(known))
            known[key] = None
            return Reply(request, repr(key), Random(repr(key)).random(), Usage(1, 1))

        return play(method(PROBLEM, ["a", "b", "c", "d"], budget, Random(7)), answer)

    longest = short(50)
    for budget in range(1, 50):
        assert short(budget) == longest[:budget]


def test_methods_import_only_the_standard_library_core_and_tree():
    for name in NAMES:
        source = (Path(toa_exp.__file__).parent / "methods" / f"{name}.py").read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom | ast.Import):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                top = module.partition(".")[0]
                assert top in sys.stdlib_module_names or module in {"toa_exp.core", "toa_exp.tree"}


def test_yaml_holds_every_keyword_of_its_method():
    for name in NAMES:
        config = OmegaConf.load(CONF / f"{name}.yaml")
        parameters = inspect.signature(build_function(config, "method").func).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert {key: value for key, value in config.items() if key[0] != "_"} == keywords


GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parent / "golden" / "toa_traces.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("trace", GOLDEN, ids=lambda trace: trace["id"])
def test_toa_makes_every_recorded_decision(trace):
    search = toa(
        PROBLEM,
        trace["agents"],
        trace["budget"],
        Random(0),
        alpha=trace["alpha"],
        tau=trace["tau"],
        width=trace["width"],
    )
    steps = iter(trace["steps"])
    decisions = []

    def answer(request):
        _, _, text, reward = next(steps)
        decisions.append([request.agent, request.parents[0].text if request.parents else None])
        return Reply(request, text, reward, Usage(1, 1))

    play(search, answer)
    assert decisions == [step[:2] for step in trace["steps"]]


def test_toa_width_is_a_third_of_the_budget_a_share_or_a_number():
    def decisions(**keywords):
        return play(toa(PROBLEM, ["a", "b"], 30, Random(0), **keywords), replies(4))

    assert decisions() == decisions(width=10)
    assert decisions(width=0.5) == decisions(width=15) != decisions()


def test_prs_refines_the_best_answer_of_the_first_half():
    asked = play(prs(PROBLEM, ["a", "b"], 7, Random(0), agent="b"), replies(1))
    assert [request.agent for request in asked] == ["b"] * 7
    assert [request.template for request in asked] == ["direct"] * 3 + ["refine"] * 4
    assert len({request.parents[0].text for request in asked[3:]}) == 1


def test_sequential_chains_visit_every_agent_in_a_fresh_order():
    asked = play(sequential(PROBLEM, ["a", "b", "c"], 30, Random(0)), replies(1))
    chains = [[request.agent for request in asked[i : i + 3]] for i in range(0, 30, 3)]
    assert all(sorted(chain) == ["a", "b", "c"] for chain in chains)
    assert len({tuple(chain) for chain in chains}) > 1


def test_moa_layers_see_the_layer_before():
    seen = []

    def answer(request):
        seen.append(request)
        return Reply(request, str(len(seen)), 0.0, Usage(1, 1))

    play(moa(PROBLEM, ["a", "b"], 8, Random(0), layers=3), answer)
    assert [[parent.text for parent in request.parents] for request in seen] == (
        [[], [], ["1", "2"], ["1", "2"], ["3", "4"], ["3", "4"], [], []]
    )


@pytest.mark.parametrize(
    "search",
    [
        toa(PROBLEM, ["a"], 4, Random(0), tau=0.0),
        moa(PROBLEM, ["a"], 4, Random(0), layers=0),
        moa(PROBLEM, ["a"], 4, Random(0), num_aggregation=0),
    ],
)
def test_impossible_parameters_are_refused(search):
    with pytest.raises(ValueError, match="="):
        next(search)
