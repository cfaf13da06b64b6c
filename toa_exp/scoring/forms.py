"""Which form a file of outputs has, by its fields, and how each is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from toa_exp.build import build
from toa_exp.errors import BadInput
from toa_exp.scoring.counts import GROUPS, group, problem_field, score_counts
from toa_exp.scoring.files import read
from toa_exp.scoring.further import with_metric
from toa_exp.scoring.measure import Scored
from toa_exp.scoring.pairs import score_pairs
from toa_exp.scoring.rows import Row, identifiers
from toa_exp.tasks.part import check_limit


@dataclass(frozen=True, slots=True)
class Form:
    """A form of file: the fields that tell it, what it is called, and the function that scores it."""

    name: str
    fields: tuple[str, ...]
    score: Callable[[Sequence[Row], DictConfig], Scored]


def score_file(config: DictConfig) -> Scored:
    """The metrics of `outputs`; raises BadInput where its form is none that the task takes."""
    check_limit(config.task.get("limit"))
    rows = read(Path(config.outputs), "outputs")
    kind = _kind(config)
    forms = [form for form in FORMS if form.name in kind]
    for form in forms:
        if all(field in rows[0] for field in form.fields):
            return with_metric(form.score(rows, config), config)
    listed = "; ".join(f"{form.name} ({', '.join(form.fields)})" for form in forms)
    raise BadInput(
        f"outputs={config.outputs}: rows of {', '.join(map(repr, rows[0]))} are no outputs of this task. "
        f"It takes {listed}"
    )


def _kind(config: DictConfig) -> tuple[str, ...]:
    """The names of the forms that the task takes."""
    target = str(config.task._target_)
    made: Any = get_object(target)
    return getattr(made, "forms", ("outputs",))


def _hypotheses(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.metrics.translation import pair_in_name
    from toa_exp.scoring.segments import Segments
    from toa_exp.scoring.translation import score_systems

    pair = None if OmegaConf.is_missing(config.task, "pair") else config.task.pair
    segments = Segments(
        config.task.get("path"), config.task.get("testset"), pair or pair_in_name(Path(config.outputs))
    )
    ids, limit = _part(config)
    _present(rows, ids, config)
    kept, absent = segments.chosen(rows, limit, ids)
    return score_systems(
        kept,
        Path(config.outputs),
        system=_name(config.system),
        reference=_labels(config),
        pair=pair,
        absent=absent,
    )


def _preferences(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.scoring.preferences import from_table, score_preferences

    _whole(config, "preference tables")
    return score_preferences(from_table(rows), _references(config))


def _annotations(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.scoring.alpaca import score_annotations

    _whole_unless_named(config)
    return score_annotations(rows, None, config, _references(config))


def _model_outputs(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.scoring.alpaca import score_annotations

    if config.annotations is None:
        raise BadInput(
            "these outputs are not judged: give annotations=<the annotations.json of alpaca_eval>; the "
            "answers of a run are judged by: toa-exp evaluate <run folder> metric=alpaca_eval"
        )
    _whole_unless_named(config)
    annotations = read(Path(config.annotations), "annotations")
    return score_annotations(annotations, rows, config, _references(config))


def _pairs(rows: Sequence[Row], config: DictConfig) -> Scored:
    return score_pairs(_chosen(rows, config), build(config.task.judge, "task.judge"))


def _counts(rows: Sequence[Row], config: DictConfig) -> Scored:
    k = list(config.k) if OmegaConf.is_list(config.k) else config.k
    kept = group(rows, {field: config[field] for field in GROUPS})
    return score_counts(_chosen(kept, config, problem_field(kept)), k=k, chosen={})


def _outputs(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.scoring.outputs import score_outputs

    if config.reference is not None:
        if "reference" not in config.task:
            raise BadInput(f"reference={config.reference}: of this task every problem has one; take it out")
        labels = _labels(config)
        config = OmegaConf.merge(  # type: ignore[assignment]
            config, {"task": {"reference": None if labels == "all" else labels}}
        )
    return score_outputs(rows, build(config.task, "task"), more=config.get("metric") is not None)


def _battles(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.scoring.battles import score_battles

    _whole(config, "battles")
    return score_battles(rows, system=_name(config.system), baseline=_name(config.baseline))


def _judgments(rows: Sequence[Row], config: DictConfig) -> Scored:
    from toa_exp.scoring.battles import score_judgments

    _whole(config, "judgments")
    return score_judgments(rows)


def _name(given: object) -> str | None:
    return None if given is None else str(given)


def _labels(config: DictConfig) -> str | list[str] | None:
    """The labels of the references to score against, `all`, or None."""
    given = config.reference if config.reference is not None else config.task.get("reference")
    return [str(label) for label in given] if OmegaConf.is_list(given) else given and str(given)


def _references(config: DictConfig) -> Path | None:
    return None if config.references is None else Path(config.references).expanduser()


def _part(config: DictConfig) -> tuple[set[str] | None, int | None]:
    """What task.ids and task.limit name; None is all."""
    from toa_exp.tasks.source import chosen_ids

    ids = chosen_ids(OmegaConf.to_container(config.task).get("ids"))  # type: ignore[union-attr]
    return ids, config.task.get("limit")


def _present(rows: Sequence[Row], ids: set[str] | None, config: DictConfig, field: str = "id") -> None:
    """Raises BadInput for ids that are named and that no row has; rows without are numbered from 0."""
    if ids is not None and (missing := sorted(ids - set(identifiers(rows, field)))):
        raise BadInput(f"outputs={config.outputs} has no row with {field} {', '.join(missing[:5])}")


def _chosen(rows: Sequence[Row], config: DictConfig, field: str = "id") -> Sequence[Row]:
    """The rows that task.ids and task.limit keep."""
    ids, limit = _part(config)
    if ids is not None:
        _present(rows, ids, config, field)
        rows = [row for row, one in zip(rows, identifiers(rows, field), strict=True) if one in ids]
    return rows[:limit]


def _whole(config: DictConfig, form: str) -> None:
    """Raises BadInput where only some problems are asked for of a form that is scored as a whole."""
    if _part(config) != (None, None):
        raise BadInput(
            f"{form} are scored as a whole: take out task.limit and task.ids, or give a file of fewer rows"
        )


def _whole_unless_named(config: DictConfig) -> None:
    """Raises BadInput where only some instructions are asked for, and no file of the task names them."""
    if config.task.get("path") is None:
        _whole(config, "annotations without task.path=<the evaluation set>")


FORMS = [
    Form("annotations", ("instruction", "output_1", "output_2", "preference"), _annotations),
    Form("model_outputs", ("instruction", "output"), _model_outputs),
    Form("preferences", ("instruction_id", "len_baseline", "len_model", "preference"), _preferences),
    Form("battles", ("model_a", "model_b", "winner"), _battles),
    Form("judgments", ("judgement_gen_base", "judgement_base_gen"), _judgments),
    Form("games", ("games",), _judgments),
    Form("hypotheses", ("src", "refs", "hyps"), _hypotheses),
    Form("pairs", ("gold", "pred"), _pairs),
    Form("counts", ("n", "c"), _counts),
    Form("outputs", ("id", "output"), _outputs),
]
"""In the order in which a file is tried."""
