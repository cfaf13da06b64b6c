"""Whether the models of a run that is spread over a Ray cluster have GPUs to themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from toa_exp.build import target_of
from toa_exp.engines.vllm import Vllm
from toa_exp.errors import BadInput
from toa_exp.rewards.vllm_classifier import VllmClassifier
from toa_exp.runners.placement import Share


def check_gpus(what: str, share: Share, part: Mapping[str, Any], agent: str | None) -> None:
    """Raise BadInput where a model would share a GPU of the cluster with others that know nothing of it.

    `part` is what the configuration says of the engine of an `agent`, or of the reward (None). From an
    actor without GPUs Ray hides none, so that all of them would take the first of their machine.
    """
    found = _on_gpus(part, "reward" if agent is None else "engine")
    if not found:
        return
    if not share.replicas or not share.num_gpus:
        devices = " ".join(f"{setting}=cpu" for setting in found)
        elsewhere = "" if _of_vllm(found.values()) else f"; or keep it on the CPU, {devices}"
        raise BadInput(
            f"{what} runs a model where there are GPUs, with replicas={share.replicas} and num_gpus="
            f"{share.num_gpus:g}, so that none is set aside for it: all such models of a machine would go on "
            f"its first GPU. Give it {_whole(agent)}, or more{elsewhere}"
        )
    if share.num_gpus < 1 and _of_vllm(found.values()):
        raise BadInput(
            f"{what} has num_gpus={share.num_gpus:g} and is run by vLLM, which measures what is free on a "
            f"GPU and takes its part of it, as if no other did the same; give it {_whole(agent)}, or more"
        )


def _whole(agent: str | None) -> str:
    """The overrides that give an agent, or the reward, a GPU."""
    if agent is None:
        return "runner.reward.replicas=1 runner.reward.num_gpus=1"
    return f"'runner.agents={{{agent}: {{replicas: 1, num_gpus: 1}}}}'"


def _on_gpus(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The classes that run a model for the part `key` of the configuration, on a GPU where they see one.

    Each by the setting of its device.
    """
    members = {f"{key}.members.{name}": member for name, member in (part.get("members") or {}).items()}
    if part.get("engine"):  # a judge's
        members[f"{key}.engine"] = part["engine"]
    if members:
        return {s: target for name, member in members.items() for s, target in _on_gpus(member, name).items()}
    target = target_of(part)
    if target is None:
        return {}  # which is told where it is built
    setting = "devices" if "devices" in part else "device"
    planned = "auto" if hasattr(target, "join") else "cpu"
    return {} if part.get(setting, planned) == "cpu" else {f"{key}.{setting}": target}


def _of_vllm(targets: Iterable[Any]) -> bool:
    return any(isinstance(one, type) and issubclass(one, (Vllm, VllmClassifier)) for one in targets)
