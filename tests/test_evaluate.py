"""`toa-exp evaluate`: metrics added to stored runs, answers chosen anew, a judge asked at an endpoint."""

import csv
import gzip
import json
import math
from random import Random

import pytest
from fake_endpoint import Answer, completion, serving
from helpers import cli, lines
from remote import SHAPE

RUN = ["run", "task=jsonl", "ensemble=simulated", "reward=simulated", "method=parallel",
       "budget.samples=[2,4]", "tracking.mode=disabled"]  # fmt: skip


@pytest.fixture
def folder(tmp_path, questions):
    """A finished run over twelve sums."""
    result = cli(*RUN, f"task.path={questions}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (found,) = tmp_path.glob("results/default/jsonl/simulated/parallel/seed=0")
    return found


def records(folder):
    return lines((folder / "trajectories.jsonl").read_text())


def curve(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_votes_are_those_of_a_run_that_votes(tmp_path):
    """Equal answers in other words vote together, in an evaluation as in a run (and as accuracy has it)."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"prompt": f"Half? ({n})", "reference": "1/2"}) + "\n" for n in range(8))
    )
    run = ["run", "task=math500", f"task.path={questions}", "ensemble=simulated",
           "task.fields={id:id,prompt:prompt,reference:reference}", "engine=openai", "reward=verifier",
           f"ensemble.agents={{ash:{{model:m,architecture:{SHAPE}}}}}", "method=parallel",
           "budget.samples=[6]", "tracking.mode=disabled"]  # fmt: skip
    says = [r"$\frac{1}{2}$", "$0.5$", r"$\boxed{\frac12}$", "$7$", "$7$", "$7$", r"$\frac{2}{4}$"]
    with serving(lambda asked: Answer(completion(says[asked.body["seed"] % len(says)]))) as server:
        run.append(f"engine.base_url={server.url}")
        for more in ([], ["selection=majority_vote", "experiment=fresh"]):
            result = cli(*run, *more, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
    folder = next(tmp_path.glob("results/default/*/*/parallel/seed=0"))
    result = cli("evaluate", folder, "selection=majority_vote", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    voted = next(tmp_path.glob("results/default/*/*/parallel,selection=majority_vote/seed=0"))
    fresh = next(tmp_path.glob("results/fresh/*/*/parallel/seed=0"))
    assert (voted / "trajectories.jsonl").read_bytes() == (fresh / "trajectories.jsonl").read_bytes()


def test_coverage_is_added_and_all_else_stays(tmp_path, folder):
    before, columns = records(folder), curve(folder)
    store = (tmp_path / "results/store.sqlite").read_bytes()
    result = cli("evaluate", folder, "metric=coverage", "metric.k=[1,2]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "coverage" in result.stdout and "n:12" in result.stdout
    after = records(folder)
    for old, new in zip(before, after, strict=True):
        assert {**new, "metrics": None} == {**old, "metrics": None}
        assert new["metrics"].items() >= old["metrics"].items()
        assert new["metrics"]["coverage"] >= new["metrics"]["accuracy"]
        assert new["metrics"]["pass@1"] <= new["metrics"]["pass@2"] <= new["metrics"]["coverage"]
    rows = curve(folder)
    assert [{key: row[key] for key in columns[0]} for row in rows] == columns
    assert all(row["coverage_lo"] for row in rows)
    assert float(rows[1]["coverage"]) == sum(r["metrics"]["coverage"] for r in after if r["budget"] == 4) / 12
    assert (tmp_path / "results/store.sqlite").read_bytes() == store
    assert cli("figures", folder.parent, "y=coverage", cwd=tmp_path).returncode == 0


def test_another_selection_goes_beside_the_run(tmp_path, folder):
    before = (folder / "trajectories.jsonl").read_bytes()
    result = cli("evaluate", folder, "selection=last", "metric=accuracy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    other = folder.parent.parent / "parallel,selection=last" / "seed=0"
    assert [record["answer"] for record in records(other)] == [1, 3] * 12
    assert (folder / "trajectories.jsonl").read_bytes() == before
    # The same as a run that chose so from the start.
    fresh = cli(
        *RUN, f"task.path={tmp_path / 'questions.jsonl'}", "selection=last", "experiment=fresh", cwd=tmp_path
    )
    assert fresh.returncode == 0, fresh.stderr
    run = tmp_path / "results/fresh/jsonl/simulated/parallel/seed=0"
    assert (run / "trajectories.jsonl").read_bytes() == (other / "trajectories.jsonl").read_bytes()
    assert (
        cli("compare", tmp_path / "results/default", "curve=parallel", "x=samples", cwd=tmp_path).returncode
        == 0
    )


def test_choosing_anew_again_takes_the_runs_and_not_what_was_made_of_them(tmp_path, folder):
    for _ in range(2):
        result = cli("evaluate", tmp_path / "results", "selection=last", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    methods = {path.parent.parent.name for path in tmp_path.glob("results/**/curve.csv")}
    assert methods == {"parallel", "parallel,selection=last"}
    other = folder.parent.parent / "parallel,selection=last" / "seed=0"
    result = cli("evaluate", other, "selection=last", cwd=tmp_path)
    assert result.returncode == 2 and "give the folder of those" in result.stderr
    assert cli("evaluate", tmp_path / "results", "metric=coverage", cwd=tmp_path).returncode == 0
    assert "coverage" in curve(other)[0]


def test_a_metric_that_the_task_does_not_have_is_refused(tmp_path, folder):
    before = (folder / "curve.csv").read_bytes()
    result = cli("evaluate", folder, "metric=bleu", cwd=tmp_path)
    assert result.returncode == 2 and "has no bleu; it measures accuracy" in result.stderr
    assert (folder / "curve.csv").read_bytes() == before


def test_another_reward_scores_every_sample(tmp_path, folder):
    result = cli("evaluate", folder, "reward=verifier", "metric=coverage", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    other = folder.parent.parent / "parallel,reward=verifier" / "seed=0"
    for record in records(other):
        rewards = [sample["reward"] for sample in record["samples"]]
        assert set(rewards) <= {0.0, 1.0}
        assert record["metrics"]["accuracy"] == max(rewards) == rewards[record["answer"]]
        assert record["metrics"]["coverage"] == max(rewards)


def test_a_store_without_the_texts_is_refused(tmp_path, folder):
    result = cli("evaluate", folder, f"store.path={tmp_path / 'none.sqlite'}", cwd=tmp_path)
    assert result.returncode == 2 and "no store at" in result.stderr
    (tmp_path / "questions.jsonl").write_text('{"id": "new", "prompt": "?", "reference": "1"}\n')
    result = cli("evaluate", folder, cwd=tmp_path)
    assert result.returncode == 2 and "data have changed" in result.stderr


def verdict(asked):
    """A judge that prefers the longer answer three to one, and talks nonsense about question 3."""
    text = asked.body["messages"][-1]["content"]
    if "Question 3" in text:
        return Answer(judged("Both", {"Both": -0.1, "The": -3.0}))
    first = text.index("baseline" if "baseline" in text else "x")
    second = text.index("Answer")
    ours = "m" if second < first else "M"
    other = {"m": "M", "M": "m"}[ours]
    return Answer(judged(ours, {ours: math.log(0.75), other: math.log(0.25), "Both": -9.0}))


def judged(token, logprobs):
    body = completion(token, usage=(390, 1))
    top = [{"token": t, "logprob": p, "bytes": None} for t, p in logprobs.items()]
    body["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", **body}


@pytest.fixture
def judged_run(tmp_path):
    """A run on six of AlpacaEval's kind of rows, with a baseline of their own."""
    pytest.importorskip("alpaca_eval")
    rows = [
        {"instruction": f"Question {n}?", "output": f"baseline {n}", "generator": "gpt"} for n in range(6)
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    result = cli("run", "task=alpaca_eval", "task.path=alpaca.json", "ensemble=simulated", "reward=simulated",
                 "method=random", "budget.samples=[1]", "tracking.mode=disabled", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    (found,) = tmp_path.glob("results/default/alpaca_eval/simulated/random/seed=0")
    return found


def test_a_judge_at_an_endpoint_gives_win_rates_and_is_asked_once(tmp_path, judged_run):
    with serving(verdict) as server:
        command = ["evaluate", judged_run, "metric=alpaca_eval", "metric.judge.model=judge",
                   f"metric.judge.base_url={server.url}"]  # fmt: skip
        result = cli(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        asked = len(server.asked)
        body = server.asked[0].body
        assert (body["model"], body["logprobs"], body["max_tokens"]) == ("judge", True, 1)
        again = cli(*command, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        questions = [a.body["messages"][-1]["content"] for a in server.asked[asked:]]
        assert questions and all("Question 3" in text for text in questions)  # what failed is asked anew
    metrics = [record["metrics"] for record in records(judged_run)]
    assert [m["judge_failed"] for m in metrics] == [0, 0, 0, 1, 0, 0]
    assert [m["win_rate"][0] for m in metrics] == [1, 1, 1, 0, 1, 1]
    for m in metrics:
        if m["win_rate"][0]:
            assert m["win_rate"][1] == pytest.approx(0.75) and m["judge_tokens"] == 391
    (row,) = curve(judged_run)
    # These instructions are none of AlpacaEval's: its regression cannot be had, nor its name.
    assert "lc_win_rate_own" in row and "lc_win_rate" not in row and "no lc_win_rate;" in result.stderr
    assert float(row["win_rate_se"]) == pytest.approx(0.0, abs=1e-9)
    assert float(row["win_rate"]) == pytest.approx(75.0) and float(row["judge_failed"]) == pytest.approx(
        1 / 6
    )
    assert "weighted_alpaca_eval_gpt4_turbo-judge-" in (judged_run / "config.yaml").read_text()
    written = json.loads((judged_run / "annotations-1.json").read_text())
    assert [r["preference"] is None for r in written] == [False] * 3 + [True] + [False] * 2


def test_the_win_rates_of_a_run_are_those_of_scoring_its_annotations(tmp_path, shared):
    pytest.importorskip("alpaca_eval")
    data = shared / "data/alpaca_eval"
    with gzip.open(data / "instructions_and_baseline.jsonl.gz", "rt") as file:
        rows = lines(file.read())[100:140][::-1]
    rows = [{"instruction": r["instruction"], "output": "x" * (50 + 3 * n)} for n, r in enumerate(rows)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    result = cli("run", "task=alpaca_eval", "task.path=alpaca.json", "ensemble=simulated", "reward=simulated",
                 "method=random", "budget.samples=[1,3]", "tracking.mode=disabled", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    (folder,) = tmp_path.glob("results/default/alpaca_eval/simulated/random/seed=0")

    def respond(asked):
        chance = Random(asked.body["messages"][-1]["content"]).uniform(0.05, 0.95)
        return Answer(judged("m", {"m": math.log(chance), "M": math.log(1 - chance)}))

    with serving(respond) as server:
        result = cli("evaluate", folder, "metric=alpaca_eval", "metric.judge.model=judge",
                     f"metric.judge.base_url={server.url}", f"references={data}", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "lc_win_rate.difficulty:by_instruction" in result.stdout and "reconstruction" in result.stderr
    for row in curve(folder):
        annotations = folder / f"annotations-{float(row['budget']):g}.json"
        scored = cli("score", "task=alpaca_eval", f"outputs={annotations}",
                     "task.path=alpaca.json", f"references={data}", cwd=tmp_path)  # fmt: skip
        found = json.loads(scored.stdout)
        for name in ("win_rate", "win_rate_se", "lc_win_rate"):
            assert float(row[name]) == pytest.approx(found[name]["value"], abs=1e-9)
        assert float(row["lc_win_rate_lo"]) == pytest.approx(found["lc_win_rate"]["interval"][0], abs=3.0)
        assert float(row["lc_win_rate_hi"]) == pytest.approx(found["lc_win_rate"]["interval"][1], abs=3.0)


@pytest.mark.parametrize("decided", [0, 1])
def test_a_judge_that_talks_nonsense_leaves_failed_judgements(tmp_path, judged_run, decided):
    def respond(asked):
        text = asked.body["messages"][-1]["content"]
        token = "m" if decided and "Question 3" in text else "banana"
        return Answer(judged(token, {token: -0.1, "The": -3.0}))

    with serving(respond) as server:
        result = cli("evaluate", judged_run, "metric=alpaca_eval", "metric.judge.model=judge",
                     f"metric.judge.base_url={server.url}", cwd=tmp_path)  # fmt: skip
        assert len(server.asked) == 6
    assert result.returncode == 0, result.stderr
    assert f"the judge decided {decided} of 6 comparisons" in result.stderr
    (row,) = curve(judged_run)
    assert float(row["judge_failed"]) == pytest.approx(1 - decided / 6)
    assert float(row["judge_tokens"]) == 391  # of those that failed too
    assert bool(row["win_rate"]) == bool(row["win_rate_lo"]) == bool(decided)
    assert "nan" not in result.stdout
    written = json.loads((judged_run / "annotations-1.json").read_text())
    assert sum(annotation["preference"] is not None for annotation in written) == decided


def test_a_judge_that_does_not_answer_ends_the_command_resumably(tmp_path, judged_run):
    with serving(lambda asked: Answer({"error": {"message": "down"}}, 400)) as server:
        result = cli("evaluate", judged_run, "metric=alpaca_eval", "metric.judge.model=judge",
                     f"metric.judge.base_url={server.url}", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 1 and "does not answer" in result.stderr
    assert "win_rate" not in curve(judged_run)[0]


def test_openais_judge_needs_a_key(tmp_path, judged_run, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = cli("evaluate", judged_run, "metric=alpaca_eval", cwd=tmp_path)
    assert result.returncode == 2 and "OPENAI_API_KEY" in result.stderr


@pytest.fixture
def arena_run(tmp_path):
    """A run on four of Arena-Hard's kind of rows, with a baseline's answers in baseline.jsonl."""
    rows = [{"uid": f"u{n}", "category": "arena-hard-v0.1", "prompt": f"Question {n}?"} for n in range(4)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline = [
        {"uid": f"u{n}", "messages": [{"role": "user"}, {"content": {"answer": f"**baseline** {n}"}}]}
        for n in range(4)
    ]
    (tmp_path / "baseline.jsonl").write_text("".join(json.dumps(row) + "\n" for row in baseline))
    result = cli(
        "run",
        "task=arena_hard",
        "task.path=question.jsonl",
        "ensemble=simulated",
        "reward=simulated",
        "method=random",
        "budget.samples=[1]",
        "tracking.mode=disabled",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    (folder,) = tmp_path.glob("results/default/arena_hard/simulated/random/seed=0")
    return folder


@pytest.mark.parametrize("verdict", ["banana", "[[A>B]] or [[B>A]]", ""])
def test_an_arena_judge_that_talks_nonsense_leaves_failed_games(tmp_path, arena_run, verdict):
    with serving(lambda _: Answer(completion(verdict, usage=(100, 5)))) as server:
        result = cli("evaluate", arena_run, "metric=arena_hard", "metric.baseline=baseline.jsonl",
                     "metric.agent.model=j", f"metric.engine.base_url={server.url}",
                     "metric.engine.key_env=null", "metric.length=characters", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    (row,) = curve(arena_run)
    assert (row["score"], row["score_lo"], row["judge_failed"]) == ("", "", "1.0")
    assert "unknown" in result.stdout and float(row["judge_tokens"]) == 210


def test_an_arena_baseline_that_is_not_there_is_named_by_its_option(tmp_path, arena_run):
    result = cli("evaluate", arena_run, "metric=arena_hard", "metric.baseline=none.jsonl",
                 "metric.agent.model=j", "metric.engine.key_env=null", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2 and "metric.baseline=none.jsonl: no such file" in result.stderr


def test_arena_hards_judge_is_an_agent_of_the_store(tmp_path, arena_run):
    def compare(asked):
        """Prefer ours by much where it comes first, a little where second; no verdict on question 3."""
        text = asked.body["messages"][-1]["content"]
        label = "[[A>>B]]" if text.index("[Answer B]") < text.index("**baseline**") else "[[B>A]]"
        return Answer(completion("Both fine." if "Question 3" in text else f"So {label}", usage=(100, 5)))

    with serving(compare) as server:
        command = ["evaluate", arena_run, "metric=arena_hard", "metric.baseline=baseline.jsonl",
                   "metric.agent.model=j", f"metric.engine.base_url={server.url}",
                   "metric.engine.key_env=null", "metric.length=characters"]  # fmt: skip
        for _ in range(2):
            result = cli(*command, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
        assert len(server.asked) == 8  # the second time all is stored
    metrics = [record["metrics"] for record in records(arena_run)]
    assert [m["score"] for m in metrics] == [[4.0, 4.0]] * 3 + [[0.0, 0.0]]
    assert [m["judge_failed"] for m in metrics] == [0, 0, 0, 1] and metrics[0]["judge_tokens"] == 210
    (row,) = curve(arena_run)
    assert float(row["score"]) == 100.0 and float(row["style_controlled_score"]) > 99
    assert '"model":"j"' in cli("store", "stats", cwd=tmp_path).stdout.replace(" ", "")
