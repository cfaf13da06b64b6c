"""Agents: which model, sampled how, and what identifies it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toa_exp import hub
from toa_exp.build import call, check_type
from toa_exp.cost import Architecture, Price, architecture
from toa_exp.digests import file_digest
from toa_exp.errors import BadInput, choose
from toa_exp.mends import damaged

FIELDS = ["model", "revision", "sampling", "price", "architecture", "engine", "options", "made"]
_SAMPLING = ["temperature", "top_p", "max_tokens"]
_EXTRA = "extra_body"


@dataclass(frozen=True, slots=True)
class Agent:
    """A model and how it is sampled.

    `model` is a Hugging Face id, a local folder or the name that an endpoint knows. `sampling` holds
    temperature, top_p and max_tokens, and `extra_body` where an endpoint takes more than these.
    `architecture` is a config.json, or the hub id or folder of the model that has it; None: it is
    that of `model`. `engine` names one of the run's `engines`, None its `engine`. `options` belong to
    the engine and decide no sample; those of a simulated agent are what it is. `deciding` are those
    settings of its engine that do: the engine fills them in, and `made` in the configuration gives
    those of a server, such as its quantisation, of which nobody here would know.
    """

    name: str
    model: str
    revision: str | None
    sampling: Mapping[str, Any]
    price: Price | None = None
    architecture: Mapping[str, Any] | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str | None = None
    deciding: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_revision(self.revision, f"agent {self.name!r}")

    @property
    def simulated(self) -> bool:
        """Whether the agent is a parametric one, without a model."""
        return self.model == "simulated"

    def fingerprint(self) -> dict[str, Any]:
        """What decides this agent's samples; neither its name nor the engine is part of it.

        A local folder counts by its content, so that it may be moved, and a hub id by its revision.
        What an engine makes of the model, such as quantising it, counts where it is not the usual.
        """
        if self.simulated:
            return {"model": self.model, "sampling": dict(self.sampling), "options": dict(self.options)}
        made = {"made": dict(self.deciding)} if self.deciding else {}
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            return {"model": folder_digest(folder), "sampling": dict(self.sampling), **made}
        return {"model": self.model, "revision": self.revision, "sampling": dict(self.sampling), **made}

    def shape(self) -> Architecture:
        """The architecture that FLOPs are counted from: as given, or of the model's config.json.

        Raises BadInput where they cannot be.
        """
        whose, given = f"agent {self.name!r}", self.architecture
        if isinstance(given, str):
            given = model_config(given, None, f"architecture of {whose}")
        config = given or model_config(self.model, self.revision, whose)
        try:
            return architecture(config)
        except BadInput as error:
            raise BadInput(f"{whose}: {error} (ensemble.agents.{self.name}.architecture)") from error

    @property
    def place(self) -> str:
        """Where its engine is in the configuration."""
        return f"engines.{self.engine}" if self.engine else "engine"

    def check_sampling(self) -> None:
        """Raise BadInput for sampling parameters that no model can be sampled with."""
        values = self.sampling
        temperature, top_p, limit = (values.get(key, math.nan) for key in _SAMPLING)
        numbers = all(type(value) in (int, float) for value in (temperature, top_p))
        fine = numbers and 0 <= temperature < math.inf and 0 < top_p <= 1
        if not fine or type(limit) is not int or limit < 1:
            raise BadInput(
                f"agent {self.name!r} has sampling {dict(values)}; temperature is at least 0 (0 takes the "
                f"likeliest token), top_p above 0 and at most 1, max_tokens at least 1, an integer"
            )


def agents_of(ensemble: Mapping[str, Any]) -> dict[str, Agent]:
    """The agents of an `ensemble` configuration by name, in the order given."""
    members, sampling = ensemble.get("agents") or {}, ensemble.get("sampling") or {}
    if not members:
        raise BadInput("ensemble.agents is empty; name one agent or more, each with its `model`")
    check_type("ensemble.agents", members, Mapping[str, Any])
    check_type("ensemble.sampling", sampling, Mapping[str, Any])
    return {name: _agent(name, fields, sampling) for name, fields in members.items()}


def check_revision(revision: object, whose: str) -> None:
    """Raise BadInput for a revision that is no text: one of digits alone is a number to YAML."""
    if revision is not None and not isinstance(revision, str):
        raise BadInput(f"{whose} has revision={revision}, a number; put it in quotes, revision: '<commit>'")


def _agent(name: str, fields: Mapping[str, Any], shared: Mapping[str, Any]) -> Agent:
    if not isinstance(fields, Mapping) or not fields.get("model"):
        raise BadInput(f"agent {name!r} has no model; give ensemble.agents.{name}.model=<folder or hub id>")
    for key in fields:
        if key not in FIELDS:
            raise choose(f"field of agent {name!r}:", key, FIELDS)
    for key in ("sampling", "options"):
        if not isinstance(fields.get(key) or {}, Mapping):
            raise BadInput(
                f"ensemble.agents.{name}.{key}={fields[key]!r} is no mapping; give {{<field>: ...}}"
            )
    for key, hint in (("engine", str | None), ("architecture", Mapping[str, Any] | str | None)):
        check_type(f"ensemble.agents.{name}.{key}", fields.get(key), hint)
    sampling = {**shared, **(fields.get("sampling") or {})}
    for key in sampling:
        if key not in [*_SAMPLING, _EXTRA]:
            raise choose(f"sampling parameter of agent {name!r}:", key, [*_SAMPLING, _EXTRA])
    if not sampling.get(_EXTRA):
        sampling.pop(_EXTRA, None)  # nothing more is asked, and the same agent is meant
    for key in _SAMPLING:
        if sampling.get(key) is None:
            raise BadInput(f"agent {name!r} has no {key}; give ensemble.sampling.{key}=<value>")
    price, made = fields.get("price"), fields.get("made") or {}
    if not isinstance(made, Mapping):
        raise BadInput(
            f"agent {name!r} has made={made!r}; give what its server makes of the model, such as "
            f"ensemble.agents.{name}.made={{quantization: fp8}}"
        )
    return Agent(
        name=name,
        model=str(fields["model"]),
        revision=fields.get("revision"),
        sampling=sampling,
        price=_price(price, f"ensemble.agents.{name}.price") if price else None,
        architecture=fields.get("architecture"),
        options=fields.get("options") or {},
        engine=fields.get("engine"),
        deciding=dict(made),
    )


def _price(given: Any, what: str) -> Price:
    if not isinstance(given, Mapping):
        raise BadInput(
            f"{what}={given!r}: give {{prompt: ..., completion: ...}}, in US dollars per million tokens"
        )
    price = call(Price, given, what)
    for name, value in (("prompt", price.prompt), ("completion", price.completion)):
        if not 0 <= value < math.inf:
            raise BadInput(f"{what}.{name}={value}: give US dollars per million tokens, 0 or more")
    return price


def model_config(model: str, revision: str | None, whose: str) -> dict[str, Any]:
    """The config.json of a local folder or a hub id; `whose` names the owner in errors."""
    folder = Path(model).expanduser()
    path = folder / "config.json"
    if not folder.is_dir():
        path = hub.config_file(model, revision, whose)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{whose}: {path} cannot be read as JSON: {error}; {damaged(model)}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{whose}: {path} holds no JSON object; {damaged(model)}")
    return config


@functools.cache
def folder_digest(folder: Path) -> str:
    """A digest of the files of a model folder, so that a moved model is the same and a new one is not."""
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if path.suffix not in {".md", ".png"}:
            state.update(f"{path.name}\0{file_digest(path)}\0".encode())
    return f"folder:{state.hexdigest()}"
