"""AlpacaEval's length-controlled win rate, by the regression of the `alpaca_eval` package."""

from __future__ import annotations

import functools
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toa_exp.errors import BadInput, missing_extra
from toa_exp.hub import library
from toa_exp.scoring.files import read
from toa_exp.scoring.rows import number
from toa_exp.stats import LEVEL, SEED, interval, resamples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

DIFFICULTY = "instruction_difficulty.csv"
GAMED = "df_gamed.csv"
RECONSTRUCTED = "df_gamed_reconstructed.csv"
_COLUMNS = ["preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model"]
INSTRUCTIONS = 805
_GLM = "length_controlled_v1"
_HUB, _REVISION = "tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judged comparison of a model with the baseline.

    `instruction` is the position in AlpacaEval's 805 (`instruction_number`), lengths are in characters,
    and `preference` is from 1 (the baseline is better) to 2 (the model is), None where the judge failed.
    """

    instruction: int
    baseline_length: int
    length: int
    preference: float | None


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The rate in per cent over all `n` comparisons, its error, its interval, and how it was made."""

    rate: float
    standard_error: float
    interval: tuple[float, float]
    n: int
    signature: Mapping[str, object]
    interval_by: str


def instruction_number(instruction: str) -> int | None:
    """The position of an instruction among AlpacaEval's 805; None where it is none of them."""
    return _numbers().get(_digest(instruction))


@functools.cache
def _numbers() -> Mapping[str, int]:
    digests = files("toa_exp.metrics").joinpath("alpaca_instructions.txt").read_text("ascii").split()
    return {digest: number for number, digest in enumerate(digests)}


def _digest(instruction: str) -> str:
    return hashlib.sha256(instruction.strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def reference_file(folder: Path | None) -> Path:
    """The table of gamed baselines that the regression is fitted with.

    It is taken from `folder`, where a reconstruction is taken for want of the original, with a
    warning; without a folder it comes from the hub. Raises BadInput where it cannot be had.
    """
    if folder is None:
        return _from_hub()
    if not folder.is_dir():
        raise BadInput(f"references={folder}: no such folder; it holds {GAMED}, and maybe {DIFFICULTY}")
    if (folder / GAMED).is_file():
        return _checked(folder / GAMED)
    if (folder / RECONSTRUCTED).is_file():
        log.warning("%s is a reconstruction of AlpacaEval's %s: length-controlled win rates may differ from "
                    "the official ones in the second decimal", folder / RECONSTRUCTED, GAMED)  # fmt: skip
        return _checked(folder / RECONSTRUCTED)
    raise BadInput(
        f"references={folder} has neither {GAMED} nor {RECONSTRUCTED}. {GAMED} is in the data set "
        f"{_HUB} of the Hugging Face hub"
    )


def _checked(path: Path) -> Path:
    """The path of the table; raises BadInput where it is another one, or not all of it."""
    rows = read(path, "references")
    missing = [column for column in _COLUMNS if column not in rows[0]]
    if missing:
        raise BadInput(f"{path} has no column {', '.join(missing)}; it is not AlpacaEval's {GAMED}")
    lacking = set(range(INSTRUCTIONS)) - {number(row, "index", str(path)) for row in rows}
    if lacking:
        raise BadInput(f"{path} has no row of {len(lacking)} of AlpacaEval's {INSTRUCTIONS} instructions")
    return path


def _from_hub() -> Path:
    try:
        return Path(library().hf_hub_download(_HUB, GAMED, repo_type="dataset", revision=_REVISION))
    except (OSError, ValueError) as error:  # what being offline looks like
        raise BadInput(
            f"{GAMED} could not be loaded from the hub ({type(error).__name__}). Where the hub is out of "
            f"reach, copy it from https://huggingface.co/datasets/{_HUB} together with "
            f"{DIFFICULTY} into a folder, and give references=<folder>"
        ) from error


def length_controlled(
    comparisons: Sequence[Comparison], gamed: Path, *, by_row: bool = False, refits: int = 200
) -> LengthControlled:
    """The win rate had the model's outputs been as long as the baseline's (Dubois et al. 2024).

    The difficulty of an instruction is looked up by its number, and the order of comparisons is of no
    account; or with `by_row` by the place of the row, as the package does: that is wrong where a
    comparison is missing. The regression is fitted on the comparisons that have a preference, and the
    rate is the mean of what it says of all, as the package has it. The baseline against itself is 50 by
    construction. The interval refits the regression, at the strength of regularisation that
    cross-validation chose, on `refits` resamples of the comparisons. Raises BadInput where there are too
    few comparisons, or lengths that do not differ, to fit it.
    """
    import numpy as np

    fit = _fitted(comparisons, gamed, by_row)
    n = len(comparisons)
    if fit is None:
        return LengthControlled(50.0, 0.0, (50.0, 50.0), n, _signature(by_row, gamed), "by construction")
    lower, upper = interval(np.array(list(_refitted(fit, refits))))
    return LengthControlled(
        100.0 * float(fit.predicted.mean()),
        100.0 * float(fit.predicted.std(ddof=1)) / n**0.5,
        (float(lower), float(upper)),
        n,
        {**_signature(by_row, gamed), "C": f"{fit.strength:.4g}"},
        f"bootstrap{LEVEL:.0%},refits={refits},seed={SEED}",
    )


def by_answer(
    comparisons: Sequence[Comparison], gamed: Path
) -> tuple[NDArray[np.float64], Mapping[str, object]]:
    """A number for each comparison, whose mean is the length-controlled win rate; and how it was made.

    They are the regression's rate for that instruction plus the comparison's influence on the
    regression, at its strength of regularisation (the infinitesimal jackknife, Efron 1982): so the
    mean over a resample is, to first order, the rate that is refitted on it, and intervals and paired
    differences can be had without refitting. Raises BadInput as `length_controlled` does.
    """
    import numpy as np

    made = _signature(False, gamed)
    fit = _fitted(comparisons, gamed, by_row=False)
    if fit is None:
        return np.full(len(comparisons), 50.0), made
    values = np.empty(len(comparisons))
    values[_order(comparisons)] = 100.0 * (fit.predicted + _influences(fit))
    return values, made


def _signature(by_row: bool, gamed: Path) -> dict[str, object]:
    return {"formula": _GLM, "difficulty": "by_row" if by_row else "by_instruction",
            "over": "all_rows", "gamed": gamed.stem, "alpaca_eval": version("alpaca-eval"),
            "scikit-learn": version("scikit-learn")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Fit:
    """The regression: design matrices of the package, with the rows of comparisons last in `train`.

    `predicted` is the rate of each comparison at no difference of length, and `strength` the C that
    cross-validation chose.
    """

    glm: Any
    train: Any
    test: Any
    weights: Any
    model: Any
    strength: float
    predicted: NDArray[np.float64]


def _order(comparisons: Sequence[Comparison]) -> list[int]:
    """The places of comparisons in the order of their instructions, in which they are fitted."""
    return sorted(range(len(comparisons)), key=lambda place: comparisons[place].instruction)


def _fitted(comparisons: Sequence[Comparison], gamed: Path, by_row: bool) -> _Fit | None:
    """The regression; None for the baseline against itself."""
    import numpy as np

    glm = _package()
    if _is_baseline(comparisons):
        return None
    _check(comparisons)
    if not by_row:
        comparisons = [comparisons[place] for place in _order(comparisons)]
    with _reading(glm, gamed):
        train, test, weights = glm._get_featurized_data(
            _table(comparisons, by_row, glm),
            formula=glm.GLM_INFO[_GLM]["formula"],
            regularize_to_baseline_lambda=glm.GLM_INFO[_GLM]["regularize_to_baseline_lambda"],
        )
        judged = train["preference"].notna().to_numpy()
        model = _fit(glm, train[judged], weights[judged], **glm.GLM_INFO[_GLM]["kwargs"])
    strength = float(np.ravel(model.C_)[0])
    return _Fit(glm, train, test, weights, model, strength, model.predict_proba(test)[:, 1])


def _influences(fit: _Fit) -> NDArray[np.float64]:
    """How much the mean rate changes with the weight of each comparison in the fit, times their number."""
    import numpy as np

    active = np.ravel(fit.model.coef_) != 0.0  # what the penalty set to 0 stays there
    wanted = fit.train["preference"].to_numpy(dtype=float)
    features = fit.train.drop(columns=["preference"])
    rates = fit.model.predict_proba(features)[:, 1]
    x = features.to_numpy(dtype=float)[:, active]
    spread = np.where(np.isnan(wanted), 0.0, fit.weights.to_numpy(dtype=float)) * rates * (1.0 - rates)
    curvature = (x * spread[:, None]).T @ x
    own = slice(len(x) - len(fit.test), None)
    scores = x[own] * np.nan_to_num(wanted[own] - rates[own])[:, None]
    slope = fit.predicted * (1.0 - fit.predicted)
    gradient = (fit.test.to_numpy(dtype=float)[:, active] * slope[:, None]).sum(axis=0)
    influence: NDArray[np.float64] = (scores - scores.mean(axis=0)) @ np.linalg.solve(curvature, gradient)
    return influence


def _package() -> Any:
    if find_spec("alpaca_eval") is None:
        raise missing_extra("alpaca-eval", "alpaca")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated, and it imports that
        from alpaca_eval.metrics import glm_winrate
    return glm_winrate


@contextmanager
def _reading(glm: Any, gamed: Path) -> Iterator[None]:
    """Let the package read a local file where it would go to the hub."""
    download = glm.hf_hub_download
    glm.hf_hub_download = lambda **_: str(gamed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, of an argument that it will drop
            yield
    finally:
        glm.hf_hub_download = download


def _table(comparisons: Sequence[Comparison], by_row: bool, glm: Any) -> Any:
    import pandas as pd

    numbers = range(len(comparisons)) if by_row else [c.instruction for c in comparisons]
    return pd.DataFrame(
        {
            "preference": pd.Series([c.preference for c in comparisons], dtype=float).to_numpy(),
            "output_1": ["x" * c.baseline_length for c in comparisons],  # it reads their lengths alone
            "output_2": ["x" * c.length for c in comparisons],
        },
        index=list(numbers),
    )


def _fit(glm: Any, train: Any, weights: Any, **options: Any) -> Any:
    return glm.fit_LogisticRegressionCV(
        train, "preference", is_ytrue_proba=True, sample_weight=weights, **options
    )


def _refitted(fit: _Fit, refits: int) -> Iterator[float]:
    """Rates on resampled comparisons; the gamed baselines stay as they are."""
    import pandas as pd

    own = fit.train["not_gamed_baseline.astype(float)"] == 1
    fixed, fixed_weights = fit.train[~own], fit.weights[~own]
    compared, compared_weights = fit.train[own], fit.weights[own]
    known = compared["preference"].notna().to_numpy()
    for chosen in resamples(len(compared), refits):
        judged = chosen[known[chosen]]
        again = pd.concat([fixed, compared.iloc[judged]], ignore_index=True)
        weighted = pd.concat([fixed_weights, compared_weights.iloc[judged]], ignore_index=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _fit(fit.glm, again, weighted, n_splits=0, C=fit.strength)
        yield 100.0 * float(model.predict_proba(fit.test.iloc[chosen])[:, 1].mean())


def _check(comparisons: Sequence[Comparison]) -> None:
    if len({c.baseline_length - c.length for c in comparisons}) < 2 or all(
        c.preference is None for c in comparisons
    ):
        raise BadInput(
            "the length-controlled win rate cannot be fitted: it takes judged comparisons whose differences "
            "of length are not all the same"
        )


def _is_baseline(comparisons: Sequence[Comparison]) -> bool:
    return all(c.baseline_length == c.length and c.preference == 1.5 for c in comparisons)
