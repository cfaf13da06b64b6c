"""Placement: pure arithmetic, on GPUs that are not there."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from toa_exp.engines.gpus import Ground
from toa_exp.engines.placement import plan
from toa_exp.engines.seats import GIB, Gpu, Model, Plan
from toa_exp.engines.sizes import size_of
from toa_exp.engines.vllm_settings import Settings
from toa_exp.errors import BadInput

KV = 128 * 1024  # bytes a token: Llama 3.1 8B in 16 bits


def gpus(*sizes: float, used: float = 0.0) -> list[Gpu]:
    return [Gpu(i, "a GPU", int(size * GIB), int((size - used) * GIB)) for i, size in enumerate(sizes)]


def model(name: str, weights: float, tokens: int = 8192, **fields: object) -> Model:
    given = {"heads": 32, "settings": (("++ensemble", "agents", name, "options"),), **fields}
    return Model(name, int(weights * GIB), KV, tokens, **given)


def reward(weights: float, **fields: object) -> Model:
    return Model("reward", int(weights * GIB), sleeps=False, **fields)


def check(made: Plan, models: list[Model], utilization: float = 0.9) -> None:
    """Nothing is over the limit, whoever is awake, and everybody has what it needs."""
    assert set(made.seats) == {m.name for m in models}
    for gpu in made.gpus:
        room = min(gpu.total * utilization, gpu.free)
        here = [seat for seat in made.seats.values() if gpu.index in seat.gpus]
        fixed = sum(seat.share for seat in here if made.turns(seat.model.name) is None) * gpu.total
        for stage in made.stages:
            mine = [seat for seat in here if seat.model.name in stage.names]
            for awake in combinations(mine, min(stage.awake, len(mine))):
                asleep = (len(mine) - len(awake)) * GIB
                assert fixed + sum(seat.share for seat in awake) * gpu.total + asleep <= room + 1000
        if not made.stages:
            assert fixed <= room + 1000
    for seat in made.seats.values():
        assert len(set(seat.gpus)) == seat.model.gpus
        for index in seat.gpus:
            gpu = next(gpu for gpu in made.gpus if gpu.index == index)
            assert seat.share * gpu.total >= seat.model.need(gpu) - 1000
        if seat.model.share is None:
            assert seat.cache >= seat.model.cache * seat.model.tokens - 1000


def test_an_agent_with_the_rewards_name_is_told():
    with pytest.raises(BadInput, match="rename the agent"):
        plan([model("reward", 1), reward(1)], gpus(24))


def test_one_model_gets_the_whole_card():
    models = [model("qwen", 15.2)]
    made = plan(models, gpus(24))
    check(made, models)
    assert made.seats["qwen"].share == pytest.approx(0.9)
    assert made.seats["qwen"].cache == pytest.approx((0.9 * 24 - 15.2 - 2) * GIB, abs=1000)
    assert not made.stages


def test_models_spread_over_a_node_largest_first():
    models = [model("small", 3), model("large", 40), model("middle", 15), reward(14)]
    made = plan(models, gpus(80, 80, 80, 80))
    check(made, models)
    assert len({seat.gpus for seat in made.seats.values()}) == 4
    assert made.seats["large"].gpus == (0,)
    assert made.seats["reward"].share == pytest.approx(16 / 80)


def test_what_is_left_becomes_room_for_as_many_tokens_each():
    models = [model("wide", 10), Model("narrow", 10 * GIB, KV // 4, 8192)]
    made = plan(models, gpus(80))
    check(made, models)
    wide, narrow = made.seats["wide"].cache, made.seats["narrow"].cache
    assert wide / KV == pytest.approx(narrow / (KV // 4), rel=1e-3)


def test_tensor_parallelism_takes_several_gpus_and_the_same_share_of_each():
    models = [model("huge", 140, gpus=4), model("small", 3)]
    made = plan(models, gpus(80, 80, 80, 80))
    check(made, models)
    assert made.seats["huge"].gpus == (0, 1, 2, 3)
    assert len(made.seats["small"].gpus) == 1


def test_indices_and_shares_that_are_asked_for_are_kept():
    models = [model("here", 3, only=(1,)), model("part", 3, share=0.25), model("free", 3)]
    made = plan(models, gpus(24, 24))
    check(made, models)
    assert made.seats["here"].gpus == (1,)
    assert made.seats["part"].share == pytest.approx(0.25)


def test_packs_tightly_where_spreading_out_leaves_no_room():
    models = [model("a", 9, tokens=0), model("b", 9, tokens=0), model("c", 17, tokens=0)]
    made = plan(models, gpus(24, 25))
    check(made, models)
    assert not made.stages


def test_other_processes_memory_is_left_alone():
    with pytest.raises(BadInput, match=r"GPU 0 has 10\.0 of 24\.0 GiB"):
        plan([model("qwen", 15.2)], gpus(24, used=14))


def test_agents_that_do_not_fit_at_once_take_turns_beside_the_reward():
    models = [model("a", 12), model("b", 11), model("c", 10), reward(3)]
    made = plan(models, gpus(24.5, used=0.5))
    check(made, models)
    [stage] = made.stages
    assert set(stage.names) == {"a", "b", "c"} and stage.awake == 1
    assert made.turns("reward") is None
    assert "by turns, 1 of 3 awake" in made.table()


def test_as_many_are_awake_as_fit_and_as_many_as_asked_for():
    models = [model(name, 14) for name in "abcd"]
    made = plan(models, gpus(80))
    assert not made.stages
    made = plan([model(name, 24) for name in "abcd"], gpus(80))
    check(made, [model(name, 24) for name in "abcd"])
    assert made.stages[0].awake == 2
    made = plan(models, gpus(80), residents=1)
    check(made, models)
    assert made.stages[0].awake == 1
    with pytest.raises(BadInput, match=r"engine\.residents=auto"):
        plan([model(name, 24) for name in "abcd"], gpus(80), residents=3)


def test_turns_are_taken_on_every_gpu_apart():
    models = [model(name, 14) for name in "abcd"]
    made = plan(models, gpus(24, 24))
    check(made, models)
    assert sorted(len(stage.names) for stage in made.stages) == [2, 2]
    assert {stage.awake for stage in made.stages} == {1}


@pytest.mark.parametrize(
    ("models", "there", "mends"),
    [
        ([model("big", 130)], gpus(80, 80), ["options.tensor_parallel_size=2"]),
        ([model("long", 15.2, tokens=131072)], gpus(24), ["options.max_model_len="]),
        ([model("big", 28)], gpus(24), ["options.quantization=fp8"]),
        ([model("big", 50, quantised=True)], gpus(24), ["a GPU of 59 GiB or more for big alone"]),
        ([model("big", 10), reward(14)], gpus(24), ["1 more GPU of 24 GiB"]),
        ([model("part", 3, share=0.95)], gpus(24), ["options.gpu_memory_utilization=null;"]),
        ([model("odd", 45, heads=14)], gpus(24, 24, 24, 24, 24, 24, 24), ["tensor_parallel_size=7;"]),
        ([model("few", 45, heads=12, pairs=4)], gpus(*[24] * 7), ["tensor_parallel_size=4;"]),
        ([reward(28)], gpus(24), ["a GPU of 33 GiB or more for reward alone"]),
        ([reward(14, device="reward.device"), model("a", 15)], gpus(24), ["reward.device=cpu"]),
        (
            [reward(28, settings=(("reward",),), heads=32)],
            gpus(24, 24),
            ["reward.tensor_parallel_size=2;", "reward.quantization=fp8"],
        ),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(models, there, mends):
    with pytest.raises(BadInput) as error:
        plan(models, there)
    assert "does not fit" in str(error.value) and models[0].name in str(error.value)
    said = str(error.value).split("What would do: ")[1] + ";"
    for mend in mends:
        assert mend in said
    assert said.count(";") == len(mends)


def test_the_context_that_is_proposed_fits():
    long = model("long", 15.2, tokens=131072)
    with pytest.raises(BadInput) as error:
        plan([long], gpus(24))
    tokens = int(str(error.value).split("options.max_model_len=")[1].split(";")[0])
    models = [model("long", 15.2, tokens=tokens)]
    check(plan(models, gpus(24)), models)
    with pytest.raises(BadInput):
        plan([model("long", 15.2, tokens=tokens + 256)], gpus(24))


@pytest.mark.parametrize("seed", range(200))
def test_no_plan_promises_more_than_there_is(seed):
    rng = Random(seed)
    there = gpus(*rng.choices([16, 24, 48, 80], k=rng.randrange(1, 5)), used=rng.choice([0, 1]))
    models = [
        model(f"m{i}", rng.uniform(0.5, 30), tokens=rng.choice([2048, 32768]), gpus=rng.choice([1, 1, 1, 2]))
        for i in range(rng.randrange(1, 6))
    ]
    models += [reward(rng.uniform(1, 14))] * rng.randrange(2)
    try:
        made = plan(models, there, residents=rng.choice([None, None, 1, 2]))
    except BadInput as error:
        assert "What would do: " in str(error)
    else:
        check(made, models)


def test_the_ground_is_planned_once_and_keeps_to_the_gpus_named(capsys):
    asked = []

    def there() -> list[Gpu]:
        asked.append(None)
        return gpus(24, 24, 24)

    ground = Ground([1, 2])
    ground.add(lambda: [model("a", 10), model("b", 10)])
    made = ground.plan(there)
    assert made is not None and {seat.gpus for seat in made.seats.values()} == {(1,), (2,)}
    assert ground.plan(there) is made and len(asked) == 1
    assert made.table() in capsys.readouterr().err
    for wrong in ([3], [], [-1]):
        with pytest.raises(BadInput, match=r"engine\.gpus"):
            Ground(wrong).plan(there)


def test_without_gpus_there_is_no_plan():
    ground = Ground()
    ground.add(lambda: [model("a", 1000)])
    assert ground.plan(lambda: []) is None


LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "dtype": "bfloat16",
    "max_position_embeddings": 131072,
}  # fmt: skip


def folder(path: Path, size: int | None, **changes: object) -> str:
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    if size is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}}))
    return str(path)


def test_sizes_are_those_of_the_files_in_the_format_they_are_loaded_in(tmp_path):
    place = folder(tmp_path, 16 * GIB)
    size = size_of(place, None, "agent 'a'")
    assert (size.weights, size.cache, size.window) == (16 * GIB, KV, 131072)
    assert size_of(place, None, "agent 'a'", dtype="float32").weights == 32 * GIB
    assert size_of(place, None, "agent 'a'", quantization="fp8").weights < 10 * GIB
    assert size_of(place, None, "agent 'a'", cache_dtype="fp8").cache == KV // 2
    assert size_of(folder(tmp_path, 32 * GIB, dtype="float32"), None, "agent 'a'").weights == 16 * GIB
    stored = {"quantization_config": {"quant_method": "awq"}}
    assert size_of(folder(tmp_path, 5 * GIB, **stored), None, "a", dtype="float16").weights == 5 * GIB


def test_a_model_without_files_is_counted_and_one_without_fields_refused(tmp_path):
    assert size_of(folder(tmp_path, None), None, "agent 'a'").weights == pytest.approx(15 * GIB, rel=0.1)
    broken = {"num_hidden_layers": None}
    with pytest.raises(BadInput, match=r"agent 'a'.*num_hidden_layers"):
        size_of(folder(tmp_path, GIB, **broken), None, "agent 'a'")


UNKNOWN = pytest.mark.parametrize(
    ("size", "changes"),
    [(GIB, {"num_attention_heads": None}), (None, {"model_type": "of tomorrow"})],
    ids=["its cache", "all"],
)


@UNKNOWN
def test_a_model_of_unknown_size_can_be_given_its_part_of_a_gpu(tmp_path, size, changes):
    place = folder(tmp_path, size, **changes)
    with pytest.raises(BadInput, match=r"give its part of .*gpu_memory_utilization=<fraction>"):
        Settings().model("a", place, None, "agent 'a'", agents=["a"])
    made = Settings(gpu_memory_utilization=0.5).model("a", place, None, "agent 'a'", agents=["a"])
    seats = plan([made, model("b", 4)], gpus(24)).seats
    assert seats["a"].share == pytest.approx(0.5) and seats["b"].share == pytest.approx(0.4)
    with pytest.raises(
        BadInput,
        match=r"b does not fit: its own part of a GPU is 0\.5;.* smaller part .* \+\+ensemble\.agents\.a\.",
    ):
        plan([made, replace(made, name="b")], gpus(20), residents=2)


@UNKNOWN
def test_on_a_cpu_a_model_of_unknown_size_has_the_least_of_a_cache(tmp_path, size, changes):
    made = Settings(max_model_len=65536).cpu_arguments(folder(tmp_path, size, **changes), None, "agent 'a'")
    assert made["kv_cache_memory_bytes"] == GIB and made["max_num_batched_tokens"] == 65536


def test_heads_that_no_number_of_gpus_can_share_are_told(tmp_path):
    place = folder(tmp_path, 16 * GIB, num_attention_heads=28, num_key_value_heads=4)
    message = r"agent 'a': tensor_parallel_size=8 does not divide the 28 attention heads.* 7, 14 or 28"
    with pytest.raises(BadInput, match=message):
        Settings(tensor_parallel_size=8).model("a", place, None, "agent 'a'")
    made = Settings(tensor_parallel_size=4, arguments={"pipeline_parallel_size": 2})
    assert made.model("a", place, None, "agent 'a'").gpus == 8


def test_the_labs_models_have_their_files_size():
    ada = Path(__file__).parents[2] / "toa_exp/lab/weights/math/ada"
    size = size_of(str(ada), None, "agent 'ada'", dtype="float32")
    assert size.weights == (ada / "model.safetensors").stat().st_size
