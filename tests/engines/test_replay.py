"""Replay: nothing is drawn, and what a run drew is found again."""

import asyncio
from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from remote import agent, draw

from toa_exp.engines.openai import OpenAI
from toa_exp.engines.replay import Replay
from toa_exp.ensemble import Agent
from toa_exp.errors import Permanent
from toa_exp.job import _decided, engine_of

NODES = {
    "vllm": {"_target_": "toa_exp.engines.vllm.Vllm"},
    "transformers": {"_target_": "toa_exp.engines.transformers.Transformers"},
    "openai": {"_target_": "toa_exp.engines.openai.OpenAI", "base_url": "http://x/v1"},
    "replay": {"_target_": "toa_exp.engines.replay.Replay"},
}


def fingerprint(one: Agent, engine: str, **fields: object) -> dict[str, object]:
    config = OmegaConf.create({"engine": {**NODES[engine], **fields}, "engines": {}})
    return _decided(one, config).fingerprint()


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("vllm", {"dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 8, "gpus": [0]}),
        ("vllm", {"arguments": {"kv_cache_dtype": "fp8", "enforce_eager": True}}),
        ("transformers", {"dtype": "bfloat16"}),
        ("openai", {"base_url": "http://y/v1", "key_env": "KEY"}),
    ],
)
def test_what_an_agents_options_decide_is_known_in_replay(engine, options):
    one = agent(options=options)
    assert fingerprint(one, engine) == fingerprint(one, "replay")
    assert (fingerprint(one, engine) == fingerprint(agent(), "replay")) is (engine == "openai")


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_what_the_engine_decides_is_given_by_made(engine):
    drawn = fingerprint(agent(), engine, dtype="bfloat16")
    assert drawn == fingerprint(replace(agent(), deciding={"dtype": "bfloat16"}), "replay")
    assert drawn != fingerprint(agent(), engine, dtype="auto") == fingerprint(agent(), "replay")


def test_it_stands_for_the_engines_that_agents_name_too():
    agents = {"ash": agent(), "elm": replace(agent("elm"), engine="there")}
    config = {"engine": NODES["replay"], "engines": {"there": NODES["openai"]}}
    assert isinstance(engine_of(OmegaConf.create(config), agents), Replay)
    config["engine"] = NODES["openai"]
    assert all(isinstance(one, OpenAI) for one in engine_of(OmegaConf.create(config), agents).engines)


def test_what_is_missing_is_named_with_what_may_be_the_cause():
    with pytest.raises(Permanent, match=r"no draw .*agent 'ash'.*\+ensemble\.agents\.ash\.made="):
        asyncio.run(Replay({"ash": agent()}).sample(draw()))
