"""The whole command on real, if tiny, models: transformers agents and a learned reward."""

import os

import pytest
from helpers import cli, lines

pytest.importorskip("torch")
from tiny_models import causal_model, classifier_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    causal_model(folder / "tiny", seed=1, max_position_embeddings=2048)
    causal_model(folder / "other", seed=2, max_position_embeddings=2048)
    classifier_model(folder / "reward", seed=3, max_position_embeddings=4096)
    return folder


def arguments(models, questions, *more):
    return [
        "run", "task=jsonl", f"task.path={questions}", "task.limit=4", "engine=transformers",
        f"ensemble.agents={{tiny:{{model:{models}/tiny}},other:{{model:{models}/other}}}}",
        "ensemble.sampling.max_tokens=24", "reward=classifier", f"reward.model={models}/reward", *more,
    ]  # fmt: skip


def trajectories(folder):
    (path,) = folder.rglob("trajectories.jsonl")
    return lines(path.read_text())


def test_models_of_the_hub_are_run_from_its_cache_and_have_to_be_pinned(models, questions, tmp_path):
    commits = {name: digit * 40 for name, digit in (("tiny", "a"), ("other", "b"))}
    for name, commit in commits.items():
        cached = tmp_path / f"hub/models--org--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs/main").write_text(commit)
        (cached / "snapshots").mkdir()
        (cached / "snapshots" / commit).symlink_to(models / name)
    agents = f"{{tiny:{{model:org/tiny}},other:{{model:org/other,revision:{commits['other']}}}}}"
    result = cli(
        *arguments(models, questions, "method=random", "budget.samples=2"),
        f"ensemble.agents={agents}", cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (warning,) = (line for line in result.stderr.splitlines() if "Pin it" in line)
    assert f"agent 'tiny': 'org/tiny' is taken as the hub has it today (commit {'a' * 40})" in warning


def test_one_agent_by_folder(models, questions, tmp_path):
    result = cli(
        "run", "task=jsonl", f"task.path={questions}", "engine=transformers",
        f"ensemble.agents={{tiny:{{model:{models}/tiny}}}}", "ensemble.sampling.max_tokens=16",
        "reward=classifier", f"reward.model={models}/reward", "method=random", "budget.samples=[4]",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "results/default/jsonl/tiny/random/seed=0/curve.csv").is_file()
    for line in trajectories(tmp_path):
        assert {sample["agent"] for sample in line["samples"]} == {"tiny"}
        assert all(0 < sample["completion_tokens"] <= 16 for sample in line["samples"])
        assert line["cost"]["flops"] > 0 < line["cost"]["reward_flops"]


@pytest.mark.slow
def test_concurrency_changes_nothing_and_a_moved_model_is_the_same(models, questions, tmp_path):
    def decisions(folder, *more):
        folder.mkdir()
        result = cli(*arguments(models, questions, "method=toa", "budget.samples=[6]", *more), cwd=folder)
        assert result.returncode == 0, result.stderr
        return [
            [(s["draw"], s["parents"], round(s["reward"], 4)) for s in line["samples"]]
            for line in trajectories(folder)
        ]

    assert decisions(tmp_path / "one", "concurrency=1") == decisions(tmp_path / "many", "concurrency=8")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("tiny", "other", "reward"):
        (moved / name).symlink_to(models / name)
    result = cli(
        *arguments(moved, questions, "method=toa", "budget.samples=[6]", "engine=replay"),
        cwd=tmp_path / "one",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_prompt_over_the_window_is_a_typed_failure(models, questions, tmp_path):
    """Direct prompts fit into the short window, refinements of the other agent's drafts do not."""
    causal_model(tmp_path / "short", seed=4, max_position_embeddings=150)
    result = cli(
        "run", "task=jsonl", f"task.path={questions}", "task.limit=2", "engine=transformers",
        f"ensemble.agents={{tiny:{{model:{models}/tiny}},short:{{model:{tmp_path}/short}}}}",
        "ensemble.sampling.max_tokens=20", "reward=classifier", f"reward.model={models}/reward",
        "method=moa", "budget.samples=[6]", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    samples = [sample for line in trajectories(tmp_path) for sample in line["samples"]]
    failed = [sample for sample in samples if sample["failure"]]
    assert {(s["agent"], s["template"], s["failure"]) for s in failed} == {
        ("short", "aggregate", "context_window")
    }
    assert all(s["reward"] is None and s["prompt_tokens"] == s["completion_tokens"] == 0 for s in failed)
    for line in trajectories(tmp_path):
        bad = {index for index, sample in enumerate(line["samples"]) if sample["failure"]}
        assert not bad & {parent for sample in line["samples"] for parent in sample["parents"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ensemble.agents={tiny:{model:nowhere/at-all}}", "agent 'tiny'"),
        ("reward.model=nowhere/at-all", "reward"),
        ("+ensemble.agents.tiny.options={dtyp:float32}", "Did you mean 'dtype'?"),
    ],
)
def test_models_that_cannot_be_had_are_named(models, questions, tmp_path, change, message):
    given = arguments(models, questions, "method=random", "budget.samples=2")
    if change.startswith("ensemble.agents="):
        given = [argument for argument in given if not argument.startswith("ensemble.agents")]
    result = cli(*given, change, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1", "PATH": ""})
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
