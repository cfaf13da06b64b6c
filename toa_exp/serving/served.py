"""How runs find what is served: the YAMLs of an ensemble and a reward at URLs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from toa_exp.build import build, plain
from toa_exp.draws import canonical, digest
from toa_exp.engines.connection import connection_of
from toa_exp.ensemble import Agent
from toa_exp.job import engine_node
from toa_exp.rewards.base import Range, Reward
from toa_exp.serving.scores import Withheld

log = logging.getLogger(__name__)


def served_ensemble(
    config: DictConfig,
    agents: Mapping[str, Agent],
    urls: Mapping[str, str],
    made: Mapping[str, Mapping[str, Any]],
) -> str:
    """The YAML of an ensemble whose agents are reached at `urls`.

    Models, revisions and sampling stay, and so does what their servers make of the models (`made`),
    such as quantising them; and with these what identifies a sample: draws that a local engine made
    are not made again, and others are not taken for them.
    """
    members = {}
    for name, agent in agents.items():
        fields = plain(config.ensemble.agents[name])
        if name in urls:
            fields.pop("engine", None)
            fields["options"] = {"base_url": urls[name]}
        elif not agent.simulated:  # where it is already: the run on these servers has no other engine
            fields.pop("engine", None)
            fields["options"] = asdict(connection_of(agent, plain(engine_node(config, agent))))
        if made.get(name):
            fields["made"] = dict(made[name])
        members[name] = {**fields, "sampling": dict(agent.sampling)}
    text = OmegaConf.to_yaml(OmegaConf.create({"agents": members}))
    return (
        f"# Written by toa-exp serve: the agents of its ensemble, at the servers that it started.\n"
        f"defaults:\n  - override /engine@_global_.engine: openai\n{text}"
    )


def served_reward(node: DictConfig, choice: str, url: str) -> str:
    """The YAML of a reward that is reached at `url`; its identity is what decides its scores."""
    reward: Reward = build(node, "reward", task=Withheld("task"))
    known: Range | None = getattr(reward, "range", None)
    identity = digest(canonical(reward.fingerprint())).hex()[:12]
    architecture = (
        node.get("architecture")
        or getattr(reward, "architecture", None)  # of an encoder that is not at `model`
        or (node.get("model") if reward.shape else None)
    )
    if reward.shape and not architecture:
        log.warning("runs on the server of reward=%s do not count its FLOPs: it is several models", choice)
    fields = {
        "_target_": "toa_exp.rewards.http.HTTP",
        "model": f"{choice}-{identity}",
        "base_url": url,
        "architecture": architecture,
        "output_head": bool(reward.shape and reward.shape.head),
        "range": None if known is None else [known.low, known.high],
    }
    text = OmegaConf.to_yaml(OmegaConf.create(fields), resolve=True)
    return f"# Written by toa-exp serve: its reward, at the server that it started.\n{text}"
