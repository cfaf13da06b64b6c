"""Comparisons of answers with a baseline's by a judge, through the `alpaca_eval` package."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toa_exp.errors import BadInput, Unavailable, choose, missing_extra

log = logging.getLogger(__name__)
_CHUNK = 64  # comparisons between two writes of the cache
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
            annotator = self._annotator()
            rows = [
                {"instruction": p.instruction, "output_1": p.baseline, "output_2": p.output} for p in pairs
            ]
            try:
                found = annotator(rows, chunksize=_CHUNK, num_procs=self._concurrency, **self._client)
            except (openai.OpenAIError, OSError) as error:
                raise Unavailable(
                    f"the judge {self.model} does not answer: {type(error).__name__}: {error}"
                ) from error
        by_pair = {(row["instruction"], row["output_1"], row["output_2"]): row for row in found}
        return [_judgement(by_pair.get((p.instruction, p.baseline, p.output), {})) for p in pairs]

    def _annotator(self) -> Any:
        import pandas as pd
        from alpaca_eval.annotators import PairwiseAnnotator
        from omegaconf import OmegaConf

        self._folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create({self.name: self._settings}), self._folder / "configs.yaml")
        level = logging.getLogger().level
        made = PairwiseAnnotator(
            annotators_config=self._folder.resolve(),
            caching_path=self._folder / "judgements.json",
            is_store_missing_annotations=False,
        )
        logging.getLogger().setLevel(level)
        if made.df_annotations is None:  # which the package takes for a table when failures are not kept
            made.df_annotations = pd.DataFrame(columns=[*made.all_keys, made.annotation_key])
        return made


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
    preference = row.get("preference")
    judged = isinstance(preference, int | float) and not math.isnan(preference)
    raw, seconds = (row.get(name) for name in _COST)
    tokens = raw.get("total_tokens", 0.0) if isinstance(raw, dict) else 0.0
    took = seconds if isinstance(seconds, int | float) and not math.isnan(seconds) else 0.0
    return Judgement(float(preference) if judged else None, float(tokens), float(took))  # type: ignore[arg-type]
