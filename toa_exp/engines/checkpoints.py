"""Whether a checkpoint is what it is loaded as: its kind, its weights, its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toa_exp.errors import BadInput
from toa_exp.mends import damaged

# The kinds of model that are loaded, and what runs each.
_USES = {
    "CausalLM": "an agent, reward=likelihood (the lab's: lab_likelihood) or a judge (reward=llm_judge)",
    "SequenceClassification": "reward=classifier (the lab's: lab_judge, lab_weak)",
    "TokenClassification": "reward=process (the lab's: lab_process)",
}
_KIND = re.compile(rf"For({'|'.join(_USES)})$")
# Weights of a head of another kind of model: that of a language model may stay in a classifier's file.
_OTHER_HEAD = re.compile(r"(score|classifier)\.")


def check_kind(family: str, names: Sequence[str], model: str, whose: str) -> None:
    """Raise BadInput for a classifier that is to be loaded as another kind of model.

    A language model is left to `check_complete`: one whose weights have the head is a classifier all
    the same, whatever its config.json says.
    """
    wanted = _KIND.search(family)
    kinds = {match[1]: name for name in names if (match := _KIND.search(name))}
    if wanted is None or not kinds or wanted[1] in kinds or "CausalLM" in kinds:
        return
    kind, name = next(iter(kinds.items()))
    raise BadInput(
        f"{whose}: {model!r} is a {name}, as its config.json says, and runs as {_USES[kind]}; here a model "
        f"for {wanted[1]} is wanted. Choose that reward, or give a model of this kind"
    )


def uses_of(name: str) -> str | None:
    """What runs a model of the class `name`, where it is of a kind that is loaded."""
    kind = _KIND.search(name)
    return _USES[kind[1]] if kind else None


def check_complete(info: Mapping[str, Any], names: Sequence[str], model: str, whose: str) -> None:
    """Raise BadInput for weights that transformers would draw at random, or leave out.

    `info` is what it says of loading: tensors that are missing, misshapen, or those of another head;
    `names` are the model's classes as its config.json says.
    """
    mend = f"Check that it is of the kind that is wanted here; if it is, {damaged(model)}"
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    language = next((name for name in names if name.endswith("ForCausalLM")), None)
    if missing and language and all(_OTHER_HEAD.match(name) for name in missing):
        raise BadInput(
            f"{whose}: {model!r} is a {language}, as its config.json says, and runs as {_USES['CausalLM']}; "
            f"weights of the head that is wanted here are missing, e.g. {missing[0]!r}. Choose one of these, "
            f"or give a model that was trained as this reward"
        )
    if missing:
        raise BadInput(
            f"{whose}: {len(missing)} weights of {model!r} are missing, e.g. {missing[0]!r}. {mend}"
        )
    if misshapen:
        name, found, expected = misshapen[0]
        raise BadInput(
            f"{whose}: {len(misshapen)} weights of {model!r} have another shape than its config.json says, "
            f"e.g. {name!r} with {list(found)} instead of {list(expected)}. {mend}"
        )
    heads = sorted(name for name in info["unexpected_keys"] if _OTHER_HEAD.match(name))
    if heads:
        raise BadInput(
            f"{whose}: {model!r} has weights of another kind of model, e.g. {heads[0]!r}. A sequence "
            f"classifier runs as {_USES['SequenceClassification']}, a token classifier as "
            f"{_USES['TokenClassification']}"
        )


def check_vocabulary(tokenizer: Any, model: Any, name: str, whose: str) -> None:
    """Raise BadInput where a tokenizer gives tokens that the model has no embedding for.

    Tokens added to it do not count, since published models have some that are never used in text.
    """
    rows = embeddings_of(model)
    if tokenizer.vocab_size > rows:
        raise BadInput(
            f"{whose}: the tokenizer of {name!r} has {tokenizer.vocab_size} tokens, and the model knows "
            f"{rows}; it belongs to another model. {_capital(damaged(name))}"
        )


def check_tokens(ids: Sequence[int], rows: int, name: str, whose: str) -> None:
    """Raise BadInput for a token that a model of `rows` embeddings does not know."""
    if ids and max(ids) >= rows:
        raise BadInput(
            f"{whose}: the tokenizer of {name!r} gives token {max(ids)}, and the model knows {rows} tokens; "
            f"it belongs to another model. {_capital(damaged(name))}"
        )


def embeddings_of(model: Any) -> int:
    """How many tokens a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
