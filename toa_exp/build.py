"""Objects from their YAML: `_target_` names the class or function, the other keys are its keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from toa_exp.errors import BadInput, ToaError, choose


def build(config: DictConfig, what: str, **given: Any) -> Any:
    """The object that `config` describes; `given` are keywords that are no configuration.

    Raises BadInput for a target that does not exist, a keyword it does not take or a value missing.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        key = f"{what}.{missing[0].removeprefix(f'{what}.')}"
        raise BadInput(f"{key} has no value; give {key}=<value>")
    try:
        made = instantiate(config, _partial_=True, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ToaError):
            raise error.__cause__ from error
        raise BadInput(f"{what}: {error}") from error
    _check_keywords(made.func, [*made.keywords], what)
    return made(**given)


def build_function(config: DictConfig, what: str, leave_out: set[str]) -> partial[Any]:
    """The function that `config` describes, with its keywords; it is not called.

    Keywords in `leave_out` are dropped where the function does not take them.
    """
    target = config.get("_target_")
    if target is None:
        raise BadInput(f"{what} has no _target_; give {what}._target_=<module>.<function>")
    try:
        function = get_object(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise BadInput(f"{what}._target_={target} cannot be imported: {error}") from error
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    keywords = {str(key): value for key, value in values.items() if not str(key).startswith("_")}
    known = _keywords(function)
    if known is not None:
        keywords = {key: value for key, value in keywords.items() if key in known or key not in leave_out}
    _check_keywords(function, list(keywords), what)
    return partial(function, **keywords)


def _keywords(function: Callable[..., Any]) -> list[str] | None:
    """The names of the parameters that a YAML may set; None where any is taken."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _check_keywords(function: Callable[..., Any], names: list[str], what: str) -> None:
    known = _keywords(function)
    for name in names:
        if known is not None and name not in known:
            allowed = known or ["none: it takes no parameters"]
            raise choose(f"field of {what} ({getattr(function, '__name__', function)}):", name, allowed)
