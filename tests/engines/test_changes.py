"""What is told of several models that do not fit, for the paper's ensembles: it can be pasted, and does."""

import re
import shlex
from pathlib import Path
from random import Random

import hydra
import pytest

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.build import build, plain
from toa_exp.engines import sizes
from toa_exp.engines.gpus import Ground
from toa_exp.engines.placement import plan
from toa_exp.engines.seats import GIB, Gpu, Model, Plan
from toa_exp.ensemble import agents_of
from toa_exp.errors import BadInput
from toa_exp.job import assemble, engine_of, share_gpus
from toa_exp.rewards import model as reward_models
from toa_exp.runners.placement import check

# Parameters in billions and window in tokens, as their model cards and config.json have them.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": (8.03, 131072),
    "mistralai/Mistral-7B-Instruct-v0.2": (7.24, 32768),
    "01-ai/Yi-1.5-9B-Chat-16K": (8.83, 16384),
    "Qwen/Qwen2-7B-Instruct": (7.62, 32768),
    "Qwen/Qwen2-72B-Instruct": (72.7, 32768),
    "meta-llama/Llama-3.1-70B-Instruct": (70.6, 131072),
    "alpindale/WizardLM-2-8x22B": (140.6, 65536),
    "mistralai/Mistral-Large-Instruct-2407": (122.6, 131072),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": (140.6, 65536),
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": (7.51, 8192),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": (7.5, 131072),
    "a/classifier-of-1B": (1.0, 8192),
}
SETTINGS = ["tensor_parallel_size", "max_model_len", "quantization", "device"]
DOCS = Path(__file__).parents[2] / "docs/engines.md"


def compose(*overrides: str):
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def cards(count: int, size: float) -> list[Gpu]:
    return [Gpu(i, "a GPU", int(size * GIB), int(size * GIB)) for i in range(count)]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published models, as far as a plan reads them."""
    shapes = {}
    for ensemble in ("small4", "large4", "large5"):
        for agent in agents_of(plain(compose(f"ensemble={ensemble}").ensemble)).values():
            shapes[agent.model] = dict(agent.architecture)
    llama = shapes["meta-llama/Llama-3.1-8B-Instruct"]

    def config(model: str, revision: str | None, whose: str) -> dict[str, object]:
        window = PUBLISHED[model][1]
        return {**shapes.get(model, llama), "max_position_embeddings": window, "dtype": "bfloat16"}

    monkeypatch.setattr(sizes, "model_config", config)
    monkeypatch.setattr(reward_models, "model_config", config)
    monkeypatch.setattr(sizes, "_files", lambda model, revision: int(PUBLISHED[model][0] * 2e9))


def planned(there: list[Gpu], *overrides: str) -> Plan:
    """The plan of `toa-exp run` with these overrides."""
    config = compose(*overrides)
    engine = engine_of(config, agents_of(plain(config.ensemble)))
    ground = share_gpus([engine, build(config.reward, "reward", task=None)])
    made = ground.plan(lambda: there) if ground else None
    assert made is not None
    return made


def told(there: list[Gpu], *overrides: str) -> str:
    """What would do, where they do not fit."""
    with pytest.raises(BadInput) as error:
        planned(there, *overrides)
    return str(error.value).split("What would do: ")[1]


def pasted(said: str) -> list[str]:
    """The overrides of changes that do together."""
    [together] = re.findall(r"^all of these together, (.*?)(?:; or |$)", said)
    return shlex.split(together)


@pytest.mark.parametrize(
    ("there", "overrides", "settings"),
    [
        (cards(8, 80), ["ensemble=large4"], {"tensor_parallel_size"}),
        (cards(8, 80), ["ensemble=large5", "reward=armorm"], {"tensor_parallel_size"}),
        (cards(4, 80), ["ensemble=large4"], {"tensor_parallel_size", "max_model_len"}),
        (cards(1, 24), ["ensemble=small4"], {"max_model_len", "quantization"}),
        (
            cards(1, 24),
            ["ensemble=small4", "reward=armorm"],
            {"max_model_len", "quantization", "device"},
        ),
    ],
)
def test_what_is_told_of_the_papers_ensembles_can_be_pasted_and_fits(there, overrides, settings):
    given = ["engine=vllm", *overrides]
    changes = pasted(told(there, *given))
    assert {name for name in SETTINGS if any(name in change for change in changes)} == settings
    planned(there, *given, *changes)
    for change in changes:
        with pytest.raises(BadInput):
            planned(there, *given, *(other for other in changes if other is not change))


def test_a_reward_that_vllm_reads_with_can_be_told_to_read_less_at_once():
    reward = ["reward=vllm_classifier", "reward.model=Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"]
    given = ["ensemble=small4", "engine=vllm", "engine.max_model_len=8192", *reward]
    change, _, more = told(cards(1, 48), *given).partition("; or ")
    assert (change, more) == ("reward.max_length=32768", "1 more GPU of 48 GiB")
    planned(cards(1, 48), *given, change)


def test_where_no_turns_are_taken_both_that_and_what_it_takes_are_told():
    said = told(cards(1, 24), "ensemble=small4", "engine=vllm", "engine.residents=4")
    start = "agents that take turns, toa-exp run with engine=vllm engine.residents=auto and "
    assert said.startswith(start)
    changes = pasted(said.removeprefix(start))
    planned(cards(1, 24), "ensemble=small4", "engine=vllm", "engine.residents=auto", *changes)


def test_agents_of_one_model_are_all_told_what_it_takes():
    both = "++ensemble.agents.twin={model: meta-llama/Llama-3.1-8B-Instruct, revision: '0e9e39f249a16976918f6564b8830bc894c89659'}"  # noqa: E501
    given = ["ensemble=small4", "engine=vllm", both]
    changes = pasted(told(cards(1, 24), *given))
    assert "++ensemble.agents.twin.options.max_model_len=8192" in changes
    assert len(planned(cards(1, 24), *given, *changes).seats) == 4


def test_a_model_that_nothing_helps_is_told_how_large_a_gpu_it_takes():
    said = told(cards(1, 24), "ensemble=large4", "engine=vllm")
    assert said == "a GPU of 309 GiB or more for wizardlm-2-8x22b alone"


@pytest.mark.parametrize("seed", range(100))
def test_changes_that_are_told_make_all_models_fit(seed):
    rng = Random(seed)
    there = cards(rng.choice([1, 2, 4]), rng.choice([16, 24, 48]))
    models = [
        Model(
            f"m{i}", int(rng.uniform(8, 60) * GIB), 2**17, rng.choice([8192, 131072]), heads=32, pairs=8,
            settings=(("++ensemble", "agents", f"m{i}", "options"),),
        )
        for i in range(rng.randrange(2, 5))
    ]  # fmt: skip
    try:
        plan(models, there)
    except BadInput as error:
        [said] = str(error).split("What would do: ")[1:]
    else:
        return
    for way in said.split("; or "):
        if alone := re.fullmatch(r"a GPU of (\d+) GiB or more for (m\d) alone", way):
            plan([model for model in models if model.name == alone[2]], cards(1, int(alone[1]) + 1))
        elif more := re.fullmatch(r"(\d) more GPUs? of (\d+) GiB", way):
            plan(models, cards(len(there) + int(more[1]), int(more[2])))
        else:
            assert "options." in way
            assert len(plan([changed(model, way) for model in models], there).seats) == len(models)


def changed(model: Model, said: str) -> Model:
    """The model with the overrides that it is told of."""
    here = dict(re.findall(rf"\.{model.name}\.options\.(\w+)=(\w+)", said))
    weights = int(model.weights * (0.58 if "quantization" in here else 1))
    tokens, size = int(here.get("max_model_len", model.tokens)), int(here.get("tensor_parallel_size", 1))
    return Model(model.name, weights, model.cache, tokens, gpus=size)


def test_gpus_without_a_model_are_named_with_what_would_use_them():
    made = planned(cards(8, 80), "ensemble=small4", "engine=vllm", "reward=armorm")
    last = made.table().splitlines()[-1]
    assert last.startswith("GPUs without a model: 5, 6, 7; ")
    proposed = shlex.split(last.replace("<agent>", "qwen2-7b").partition("use them, ")[2])
    place = build(compose(*proposed).runner, "runner")
    assert place.agent_share("qwen2-7b").replicas == 2 and place.agent_share("mistral-7b").num_gpus == 1
    assert "without" not in planned(cards(2, 80), "ensemble=small4", "engine=vllm").table()


@pytest.mark.parametrize(
    ("concurrency", "overrides", "places"),
    [
        (64, [], 1024),
        (64, ["engine.max_num_seqs=16"], None),
        (64, ["engine.residents=1", "engine.gpus=[0]", "engine.max_model_len=8192"], 256),
        (1024, [], None),
        (None, [], None),
    ],
)
def test_too_few_open_problems_for_the_engines_are_told(caplog, concurrency, overrides, places):
    config = compose("ensemble=small4", "engine=vllm", *overrides)
    engine = engine_of(config, agents_of(plain(config.ensemble)))
    engine.ground.concurrency = concurrency
    for _ in range(2):
        engine.ground.plan(lambda: cards(8, 80))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (places is not None)
    if places is not None:
        assert f"concurrency={concurrency} " in warned[0] and f"concurrency={places} " in warned[0]


@pytest.mark.parametrize("more", [0, 1])
def test_open_problems_are_counted_where_there_are_more(questions, more):
    given = ["ensemble=small4", "engine=vllm", "task=jsonl", f"task.path={questions}", "reward=verifier"]
    job = assemble(compose(*given, f"concurrency={12 - more}"), [])
    job.check_concurrency()
    assert job.ground.concurrency == (11 if more else None)


def test_without_gpus_nobody_is_told_how_many_problems_to_open(caplog):
    ground = Ground()
    ground.concurrency = 1
    ground.add(lambda: [Model("a", GIB, places=256)])
    assert ground.plan(lambda: []) is None and not caplog.records


def recipe(ensemble: str, *further: str) -> list[str]:
    """The overrides of the command in the documentation that has these."""
    if not DOCS.is_file():
        pytest.skip("not in a checkout")
    text = DOCS.read_text().partition("### One card, or a node of eight")[2].partition("\n## ")[0]
    commands = [
        shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```sh\n(.*?)```", text, re.S)
    ]
    [found] = [words for words in commands if {f"ensemble={ensemble}", *further} <= set(words)]
    return found[2:]


def test_the_recipe_for_one_card_fits():
    overrides = recipe("small4", "reward.device=cpu")
    made = planned(cards(1, 23.5), *overrides)
    [stage] = made.stages
    assert set(made.seats) == set(stage.names) and stage.awake == 1
    assert min(seat.cache // seat.model.cache for seat in made.seats.values()) > 2 * 8192
    assert compose(*overrides).concurrency == 256
    agents = [override for override in overrides if not override.startswith("reward")]
    smaller = planned(cards(1, 23.5), *agents, "reward=classifier", "reward.model=a/classifier-of-1B")
    assert smaller.seats["reward"].gpus == (0,)


def test_the_recipe_for_a_node_of_eight_fits():
    made = planned(cards(8, 79), *recipe("large4"))
    assert len(made.seats) == 5 and made.stages[0].awake == 1
    assert all(len(seat.gpus) == 8 for name, seat in made.seats.items() if name != "reward")
    asleep = sum(seat.model.weights for name, seat in made.seats.items() if name != "reward")
    assert asleep / GIB == pytest.approx(760, abs=5)


def test_the_recipe_for_replicas_takes_all_of_a_node_of_eight():
    config = compose(*recipe("small4", "runner=ray"))
    place = build(config.runner, "runner")
    shares = [(name, place.agent_share(name)) for name in config.ensemble.agents]
    shares.append(("reward", place.reward_share))
    assert sum(share.replicas * share.num_gpus for _, share in shares) == 8
    check([{"GPU": 8, "CPU": 64}], [("worker", place.worker), *shares])
    assert config.runner.workers * min(config.runner.shard, config.concurrency) >= 805
    for name in config.ensemble.agents:
        agents = agents_of(plain(config.ensemble))
        engine = engine_of(config, {name: agents[name]})
        assert engine.ground.plan(lambda: cards(1, 80)) is not None
