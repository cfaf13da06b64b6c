"""Comparisons of answers with a baseline's by a judge, through the `alpaca_eval` package."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, SupportsFloat

from toa_exp.errors import BadInput, Unavailable, choose, missing_extra

log = logging.getLogger(__name__)
_CHUNK = 64  # comparisons between two writes of the cache
_PREFERENCE = "preference"
_COST = ("preference_raw_completion", "preference_time_per_example")


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer and the baseline's, to the same instruction."""

    instruction: str
    baseline: str
    output: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge made of a pair.

    `preference` is from 1 (the baseline is better) to 2 (the output is), None where the judge gave
    none. `tokens` and `seconds` are what the comparison took when it was made.
    """

    preference: float | None
    tokens: float
    seconds: float


class WeightedJudge:
    """A judge by the log-probabilities of its one-token verdict, as AlpacaEval 2.0 has it.

    `model` is asked at any OpenAI-compatible `base_url` (None: OpenAI's), with the key in the
    environment variable `key_env`, `concurrency` comparisons at a time. `annotator` is a
    configuration of the package, whose prompt and parser are used. Judgements are kept below the
    folder `cache`, one file a judge; those that failed are asked for again. Raises Unavailable where
    the judge does not answer: what was judged so far is kept.
    """

    def __init__(
        self,
        *,
        model: str,
        annotator: str,
        cache: str,
        base_url: str | None = None,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
    ) -> None:
        if find_spec("alpaca_eval") is None:
            raise missing_extra("alpaca-eval", "alpaca")
        if base_url is None and not os.environ.get(key_env):
            raise BadInput(
                f"metric.judge.model={model} is asked at OpenAI, and ${key_env} has no key. Set it, or give "
                f"metric.judge.base_url=<address of your own server>"
            )
        self._client = {"openai_api_base": base_url, "openai_api_keys": [os.environ.get(key_env) or "none"]}
        self._concurrency = concurrency
        self.model = model
        self._settings = _settings(annotator, model)
        mark = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()[:8]
        self.name = f"{annotator}-{Path(model).name}-{mark}"
        self._folder = Path(cache) / self.name

    def fingerprint(self) -> Mapping[str, Any]:
        """The judge's name, which has a digest of its settings."""
        return {"judge": self.name}

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """The judgements of pairs, in their order."""
        import openai

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas' and pkg_resources', of how the package uses them
            failed: list[Mapping[str, Any]] = []
            annotator = self._annotator(failed)
            rows = [
                {"instruction": p.instruction, "output_1": p.baseline, "output_2": p.output} for p in pairs
            ]
            try:
                found = annotator(rows, chunksize=_CHUNK, num_procs=self._concurrency, **self._client)
            except (openai.OpenAIError, OSError) as error:
                raise Unavailable(
                    f"the judge {self.model} does not answer: {type(error).__name__}: {error}"
                ) from error
        by_pair = {_pair(row): row for row in failed}
        by_pair |= {_pair(row): row for row in found if _number(row.get(_PREFERENCE)) is not None}
        return [
            _judgement(by_pair.get((p.instruction, frozenset((p.baseline, p.output))), {})) for p in pairs
        ]

    def _annotator(self, failed: list[Mapping[str, Any]]) -> Any:
        """The package's annotator, which adds to `failed` the comparisons that it got no preference for."""
        from omegaconf import OmegaConf

        self._folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create({self.name: self._settings}), self._folder / "configs.yaml")
        level = logging.getLogger().level
        made = _cached_annotator()(
            annotators_config=self._folder.resolve(),
            caching_path=self._folder / "judgements.json",
            is_store_missing_annotations=False,
        )
        logging.getLogger().setLevel(level)
        for single in made.annotators.values():
            single.fn_completions = partial(self._asked, single.fn_completions)
            single._postprocess = partial(_postprocessed, single._postprocess, failed)
        return made

    def _asked(self, ask: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return ask(**arguments)
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise Unavailable(
                f"what the endpoint of the judge {self.model} replies is no chat completion with its usage, "
                f"as OpenAI's are ({type(error).__name__}: {error})"
            ) from error


def _cached_annotator() -> Any:
    """The package's annotator with a table of preferences, whatever its cache holds.

    The package takes None for a table, an empty file for one without columns, and whole numbers for
    integers, which then take no draw.
    """
    import pandas as pd
    from alpaca_eval.annotators import PairwiseAnnotator

    class Cached(PairwiseAnnotator):  # type: ignore[misc]
        df_annotations: Any

        def load_(self, path: Any = None) -> None:
            super().load_(path)
            table = self.df_annotations
            if table is None or _PREFERENCE not in table:
                table = pd.DataFrame(columns=[*self.all_keys, _PREFERENCE])
            self.df_annotations = table.astype({_PREFERENCE: float})

    return Cached


def _postprocessed(postprocess: Callable[[Any], Any], failed: list[Mapping[str, Any]], table: Any) -> Any:
    """Note the rows without a preference, which the package drops together with what they took."""
    failed += table[table[_PREFERENCE].isna()].to_dict("records")
    return postprocess(table)


def _pair(row: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    """What tells a comparison; its outputs may have been switched."""
    return row["instruction"], frozenset((row["output_1"], row["output_2"]))


def _settings(annotator: str, model: str) -> dict[str, Any]:
    """A configuration of the package, with another model and the prompt's whole path."""
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR
    from omegaconf import OmegaConf

    path = EVALUATORS_CONFIG_DIR / annotator / "configs.yaml"
    if not path.is_file():
        names = sorted(p.parent.name for p in EVALUATORS_CONFIG_DIR.glob("weighted*/configs.yaml"))
        raise choose("metric.judge.annotator", annotator, names)
    loaded: Any = OmegaConf.to_container(OmegaConf.load(path))
    settings: dict[str, Any] = dict(next(iter(loaded.values())))
    if settings["fn_completions"] != "openai_completions":
        raise BadInput(f"metric.judge.annotator={annotator} does not ask an OpenAI-compatible endpoint")
    settings["prompt_template"] = str(EVALUATORS_CONFIG_DIR / settings["prompt_template"])
    settings["completions_kwargs"] |= {"model_name": model, "requires_chatml": True, "price_per_token": 0.0}
    return settings


def _judgement(row: Mapping[str, Any]) -> Judgement:
    raw, seconds = (row.get(name) for name in _COST)
    tokens = raw.get("total_tokens", 0.0) if isinstance(raw, dict) else 0.0
    return Judgement(_number(row.get(_PREFERENCE)), float(tokens), _number(seconds) or 0.0)


def _number(value: object) -> float | None:
    """A number that is one; pandas has NaN, None and its own integers."""
    found = float(value) if isinstance(value, SupportsFloat) else math.nan
    return None if math.isnan(found) else found
