"""Objects from their YAML: `_target_` names the class or function, the other keys are its keywords."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from toa_exp.errors import BadInput, ToaError, choose

Made = TypeVar("Made")
_PART = re.compile(r"^full_key: (\S+)$", re.M)
_SIMPLE = (bool, int, float, str, type(None))
_MAPPINGS = (dict, abc.Mapping)
_LISTS = (list, abc.Sequence)


def build(config: DictConfig, what: str, **given: Any) -> Any:
    """The object that `config` describes; `given` are keywords that are no configuration.

    Raises BadInput for a target that is not given or does not exist, a keyword that it does not take, a
    value that is missing or of the wrong type.
    """
    check_part(config, what)
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
    except TypeError as error:  # of Hydra, for its own keys: what nested targets raise it wraps, see above
        raise BadInput(f"{what}: {error}") from error
    return call(made.func, made.keywords, what, **given)


def build_function(config: DictConfig, what: str, keys: Collection[str] | None = None) -> partial[Any]:
    """The function that `config` describes, with its keywords; it is not called.

    `keys` are the keywords to take from `config`, None for all of them.
    """
    target = check_part(config, what)
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


def check_part(node: Any, what: str) -> str:
    """The import path that a part of the configuration gives; raises BadInput where there is none."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or not target:
        raise BadInput(
            f"{what}={shown(node)} has no _target_, which says what it is: choose one of its group, as "
            f"`toa-exp run --help` lists them, or give {what}._target_=<module>.<name>"
        )
    return target


def target_of(node: Mapping[str, Any]) -> Any:
    """The class or function that a part of the configuration names; None for what `build` would refuse."""
    try:
        return get_object(str(node.get("_target_")))
    except (ImportError, ValueError, AttributeError):
        return None


def is_kind(node: Mapping[str, Any], *kinds: type) -> bool:
    """Whether a part of the configuration is of one of these classes, or of one derived from them."""
    target = target_of(node)
    return isinstance(target, type) and issubclass(target, kinds)


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
        check_type(f"{what}.{name}", value, hints.get(name, shared.get(name, Any)))


def check_type(key: str, value: Any, hint: Any) -> None:
    """Raise BadInput for a value, or a part of one, that is not of the type that a hint says.

    An int is a float too. Objects that no YAML can hold, such as tasks, are taken as they are.
    """
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = typing.get_args(hint) if union else (hint,)
    fitting = next((member for member in members if _fits(value, member)), None)
    if fitting is None:
        raise BadInput(f"{key}={shown(value)}{_mend(key, value, members)}")
    inner = typing.get_args(fitting)
    if inner and isinstance(value, Mapping):
        for name, part in value.items():
            check_type(f"{key}.{name}", part, inner[-1])
    elif inner and _is_list(value):
        for number, part in enumerate(value):
            check_type(f"{key}[{number}]", part, inner[0])


def shown(value: object) -> str:
    """A value as it reads in YAML, as far as a message needs it."""
    return "null" if value is None else str(value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a hint without alternatives says, whatever its parts are."""
    kind = typing.get_origin(hint) or hint
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    if kind in _SIMPLE:
        return isinstance(value, kind)
    if kind in _MAPPINGS:
        return isinstance(value, Mapping)
    if kind in _LISTS:
        return _is_list(value)
    return callable(value) if kind is abc.Callable else True


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _mend(key: str, value: Any, members: Sequence[Any]) -> str:
    """What a message says behind a key and its value that is none of the members of a hint."""
    for member in members:
        if typing.get_origin(member) in _LISTS and _fits(value, typing.get_args(member)[0]):
            return f" is no list; give {key.rpartition('.')[2]}=[{value}]"
    return f": expected {' or '.join(map(_named, members))}"


def _named(hint: Any) -> str:
    """A hint without alternatives in the words of a message."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in _MAPPINGS:
        return "a mapping, as {<name>: <value>}"
    if kind in _LISTS:
        return f"a list of {_named(inner[0])}" if inner else "a list"
    names = {float: "float or int", type(None): "null", abc.Callable: "a mapping with _target_"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))
