"""What tests of `toa-exp doctor` give it, and find in its lines."""

from collections.abc import Callable

Doctor = Callable[..., tuple[int, list[str], str]]
LOCAL = ["task=jsonl", "engine=transformers", "reward=verifier", "ensemble.sampling.max_tokens=16"]


def only(lines: list[str], level: str) -> list[str]:
    return [line for line in lines if line.startswith(level)]


def agents(**members: str) -> str:
    return "ensemble.agents={" + ",".join(f"{name}:{{{text}}}" for name, text in members.items()) + "}"
