"""Values that cannot be, at every place of a configuration: they are told, and none ends in a traceback."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from toa_exp import hub, labels
from toa_exp.app import CONF
from toa_exp.engines import gpus
from toa_exp.engines.seats import GIB, Gpu
from toa_exp.errors import BadInput
from toa_exp.job import assemble
from toa_exp.labels import LAB_WEIGHTS

MATH, URL = LAB_WEIGHTS / "math", "http://localhost:9/v1"
VALUES = (None, "x", -1, ["x"], {"x": None})
SIMULATED = ["task=simulated", "ensemble=simulated"]
LOCAL = ["task=simulated", "~ensemble.agents", f"+ensemble.agents={{ash:{{model:{MATH}/ada,options:{{}}}}}}"]
HERE = [*LOCAL, "+engine@engines.here=transformers", "+ensemble.agents.ash.engine=here"]
JUDGE = [*SIMULATED, "reward=llm_judge", "engine@reward.engine=openai", f"reward.engine.base_url={URL}",
         f"reward.model={MATH}/ada"]  # fmt: skip
MEMBER = [*SIMULATED, "reward=ensemble", "+reward@reward.members.one=classifier",
          f"reward.members.one.model={MATH}/judge"]  # fmt: skip
FIELDS = ("", "model", "revision", "sampling", "sampling.max_tokens", "sampling.extra_body", "price", "made",
          "architecture", "architecture.text_config", "engine", "options")  # fmt: skip
OPTIONS = {
    "openai": ("base_url", "key_env", "omit", "token_limit", "timeout"),
    "transformers": ("dtype",),
    "vllm": ("dtype", "quantization", "max_model_len", "gpu_memory_utilization", "gpus", "arguments",
             "arguments.pipeline_parallel_size"),
    "replay": ("max_model_len",),
    "simulator": ("skill",),
}  # fmt: skip
SHARE = ("", "replicas", "num_gpus", "num_cpus", "resources", "resources.fast")
PARTS = ("task", "engine", "reward", "method", "selection", "budget", "store", "runner", "ensemble", "seed",
         "concurrency", "retries", "backoff", "flops", "store.path", "ensemble.agents",
         "ensemble.sampling")  # fmt: skip


def below(place: str, keys: tuple[str, ...]) -> list[str]:
    return [f"{place}.{key}".strip(".") for key in keys]


def of_agents(engine: str) -> Any:
    base = SIMULATED if engine == "simulator" else LOCAL
    place = f"ensemble.agents.{'cedar' if engine == 'simulator' else 'ash'}"
    given = [f"engine.base_url={URL}"] if engine == "openai" else []
    keys = below(place, FIELDS) + below(f"{place}.options", OPTIONS[engine])
    return pytest.param([*base, f"engine={engine}", *given], ["engine"], keys, id=engine)


def of_reward(name: str) -> Any:
    base = [*SIMULATED, f"reward={name}", f"reward.model={MATH}/judge"]
    given = [f"reward.base_url={URL}"] if name == "http" else []
    keys = ["reward.architecture.text_config", "warm_up", "warm_up.good"]
    return pytest.param([*base, *given], ["reward"], keys, id=name)


def compose(*overrides: str) -> DictConfig:
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", list(overrides))
    OmegaConf.set_struct(config, False)
    return config


def every(config: DictConfig, groups: list[str], keys: list[str]) -> Iterator[str]:
    """The keys, and those of the groups but for Hydra's own."""
    for group in groups:
        yield from (f"{group}.{key}" for key in OmegaConf.select(config, group) if not key.startswith("_"))
    yield from keys


def changed(config: DictConfig, key: str, value: Any) -> DictConfig:
    copy = config.copy()
    OmegaConf.update(copy, key, value, merge=False, force_add=True)
    return copy


def no_network(model: str, revision: str | None, whose: str) -> Path:
    raise BadInput(f"{whose}: {model!r} could not be had (no network here)")


@pytest.mark.parametrize(
    ("base", "groups", "keys"),
    [
        *map(of_agents, OPTIONS),
        *map(of_reward, ("http", "classifier", "vllm_classifier", "process", "likelihood")),
        pytest.param(SIMULATED, ["store"], list(PARTS), id="run"),
        pytest.param([*SIMULATED, "store=postgresql"], ["store"], [], id="postgresql"),
        pytest.param(
            [*SIMULATED, "runner=ray"],
            ["runner"],
            [key for part in ("agent", "reward", "agents.cedar") for key in below(f"runner.{part}", SHARE)],
            id="ray",
            marks=pytest.mark.skipif(find_spec("ray") is None, reason="needs pip install -e '.[ray]'"),
        ),
        pytest.param(HERE, ["engines.here"], ["engines", "engines.here"], id="engines"),
        pytest.param(MEMBER, ["reward.members.one"], ["reward.members", "reward.members.one"], id="member"),
        pytest.param(JUDGE, ["reward", "reward.engine", "reward.sampling"], [], id="judge"),
    ],
)
def test_a_value_that_cannot_be_is_named(base, groups, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu(n, "a GPU", 24 * GIB, 24 * GIB) for n in (0, 1)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "config_file", no_network)
    config = compose(*base)
    assemble(config, [])
    unnamed, refused = [], 0
    for key in every(config, groups, keys):
        for value in VALUES:
            try:
                job = assemble(changed(config, key, value), [])
                if job.ground is not None:
                    job.ground.plan()
            except BadInput as error:
                refused += 1
                if not any(part in str(error) for part in [*key.split(".")[-2:], str(value)]):
                    unnamed.append((key, value, str(error)))
    assert not unnamed and refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["+engines.here=transformers"],
            r"engines\.here=transformers.* as \+engine@engines\.here=transformers",
        ),
        (["+engines.here.dtype=float32"], r"engines\.here=.*float32.* as \+engine@engines\.here=<choice>"),
        (["+engines.here=null"], r"engines\.here=null, which agent 'ash' names"),
        (["engines=null"], r"engines=null is no mapping.* \+engine@engines\.here=<choice>"),
        (
            ["+engine@engines.her=transformers"],
            r"engines has her\. Did you mean 'her'\? Add it: .*leave `engine` out for the run's own",
        ),
        ([], r"engines has none\. Add it: \+engine@engines\.here=<choice>"),
    ],
)
def test_an_engine_that_is_none_is_told_with_the_override_that_adds_it(given, message):
    with pytest.raises(BadInput, match=message):
        assemble(compose(*LOCAL, "+ensemble.agents.ash.engine=here", *given), [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*HERE, "engines.here.max_batch=0"], r"^engines\.here\.max_batch=0 must be"),
        (
            [*HERE[:3], "+engine@engines.here=openai", HERE[-1]],
            r"agent 'ash' has no endpoint; give engines\.here\.base_url=",
        ),
        ([*MEMBER, "reward.members.one.max_batch=0"], r"^reward\.members\.one\.max_batch=0 must be"),
        (
            [*SIMULATED, "reward=llm_judge", f"reward.model={MATH}/ada"],
            r"the judge has no endpoint; give reward\.engine\.base_url=.* or its own with reward\.options\.",
        ),
        (
            [*SIMULATED, "reward=llm_judge", f"reward.model={MATH}/ada", "engine@reward.engine=transformers",
             "reward.engine.max_batch=0"],
            r"^reward\.engine\.max_batch=0 must be",
        ),
        (
            [*SIMULATED, "reward=llm_judge", f"reward.model={MATH}/ada", "engine@reward.engine=transformers",
             "+reward.options.gpus=[0]"],
            r"unknown option of the judge with engine@reward\.engine=transformers: 'gpus'",
        ),
    ],
)  # fmt: skip
def test_settings_are_named_where_they_are(given, message):
    with pytest.raises(BadInput, match=message):
        assemble(compose(*given), [])
