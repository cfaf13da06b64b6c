"""Objects from their YAML: `_target_` names the class or function, the other keys are its keywords."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from toa_exp.errors import BadInput, ToaError, choose

Made = TypeVar("Made")
_PART = re.compile(r"^full_key: (\S+)$", re.M)
_SIMPLE = (bool, int, float, str, type(None))


def build(config: DictConfig, what: str, **given: Any) -> Any:
    """The object that `config` describes; `given` are keywords that are no configuration.

    Raises BadInput for a target that does not exist, a keyword that it does not take, a value that
    is missing or of the wrong type.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        key = f"{what}.{missing[0].removeprefix(f'{what}.')}"
        raise BadInput(f"{key} has no value; give {key}=<value>")
    try:
        made = instantiate(config, _partial_=True, _convert_="all")
    except InstantiationException as error:
        cause, part = error.__cause__, _PART.search(str(error))
        if isinstance(cause, BadInput) and part is not None and part[1] != what:
            raise BadInput(f"{part[1]}: {cause}") from error  # it knows not which of several it is
        if isinstance(cause, ToaError):
            raise cause from error
        raise BadInput(f"{what}: {error}") from error
    return call(made.func, made.keywords, what, **given)


def build_function(config: DictConfig, what: str, keys: Collection[str] | None = None) -> partial[Any]:
    """The function that `config` describes, with its keywords; it is not called.

    `keys` are the keywords to take from `config`, None for all of them.
    """
    target = config.get("_target_")
    if target is None:
        raise BadInput(f"{what} has no _target_; give {what}._target_=<module>.<function>")
    try:
        function = get_object(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise BadInput(f"{what}._target_={target} cannot be imported: {error}") from error
    keywords = {
        key: value
        for key, value in plain(config).items()
        if not key.startswith("_") and (keys is None or key in keys)
    }
    _check(function, keywords, what)
    return partial(function, **keywords)


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration as dictionaries and lists, interpolations resolved."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def call(make: Callable[..., Made], values: Mapping[str, Any], what: str, **given: Any) -> Made:
    """`make` with keywords from a configuration, checked by name and type; see `build`."""
    _check(make, values, what)
    for name, parameter in inspect.signature(make).parameters.items():
        single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if single and parameter.default is parameter.empty and name not in {*values, *given}:
            raise BadInput(f"{what}.{name} has no value; give {what}.{name}=<value>")
    return make(**values, **given)


def _check(function: Callable[..., Any], values: Mapping[str, Any], what: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    typed: Any = function
    hints = typing.get_type_hints(typed.__init__ if isinstance(function, type) else function)
    shared: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            unpacked = typing.get_args(hints.get(parameter.name))
            if not unpacked:
                return
            shared = typing.get_type_hints(unpacked[0])  # **name: Unpack[<a TypedDict>]
    named = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    known = [*(named or [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]), *shared]
    for name in values:
        if name not in known:
            allowed = known or ["none: it takes no parameters"]
            raise choose(f"field of {what} ({getattr(function, '__name__', function)}):", name, allowed)
    for name, value in values.items():
        allowed_types = _types(hints.get(name, shared.get(name)))
        if allowed_types and not isinstance(value, tuple(allowed_types)):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed_types)
            raise BadInput(f"{what}.{name}={value}: expected {names}")


def _types(hint: Any) -> list[type]:
    """The types that a value may have, where the hint names simple ones only; an int is a float too."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = list(typing.get_args(hint)) if union else [hint]
    if not all(member in _SIMPLE for member in members):
        return []
    return [*members, int] if float in members and int not in members else members
