"""The commands as a user types them."""

import csv
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import cli, lines

RUN = ["run", "task=jsonl", "ensemble=simulated", "reward=simulated"]
COLUMNS = (
    "method,budget,problems,failed,samples,prompt_tokens,completion_tokens,flops,reward_flops,usd,seconds,"
    "best_reward,best_reward_lo,best_reward_hi,accuracy,accuracy_lo,accuracy_hi"
)


def ok(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stderr
    return result


def test_gsm8k_with_simulated_agents(shared, tmp_path):
    path = shared / "data" / "math" / "gsm8k_test.jsonl"
    result = ok(
        cli("run", "task=gsm8k", f"task.path={path}", "task.limit=8", "ensemble=simulated",
            "reward=simulated", "method=toa", "budget.samples=[8,16,32]", cwd=tmp_path)
    )  # fmt: skip
    folder = tmp_path / "results" / "default" / "gsm8k" / "simulated" / "toa" / "seed=0"
    curve = (folder / "curve.csv").read_text().splitlines()
    assert curve[0] == COLUMNS and [row.split(",")[1] for row in curve[1:]] == ["8", "16", "32"]
    assert len(lines((folder / "trajectories.jsonl").read_text())) == 24
    assert "seed:0" in result.stdout and "n:8" in result.stdout
    assert "config.yaml" in os.listdir(folder)


def test_a_sweep_of_six_methods_its_figure_and_its_rerun(questions, tmp_path):
    sweep = [
        "run", "-m", "experiment=first", *RUN[1:], f"task.path={questions}", "budget.samples=[4,8]",
        "method=random,prs,parallel,sequential,moa,toa", "seed=0,1",
    ]  # fmt: skip
    ok(cli(*sweep, cwd=tmp_path))
    root = tmp_path / "results" / "first" / "jsonl" / "simulated"
    written = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.jsonl")}
    assert len(written) == 12
    stats = ok(cli("store", "stats", cwd=tmp_path)).stdout
    ok(cli("store", "verify", cwd=tmp_path))
    figures = ok(cli("figures", "results/first", "x=flops", "y=accuracy", cwd=tmp_path)).stdout.split()
    assert {Path(figure).suffix for figure in figures} == {".png", ".svg", ".pdf"}
    assert all((tmp_path / figure).stat().st_size > 1000 for figure in figures)
    ok(cli(*sweep, "concurrency=2", cwd=tmp_path))
    assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*.jsonl")} == written
    assert ok(cli("store", "stats", cwd=tmp_path)).stdout == stats


def test_an_export_holds_every_draw_with_its_scores(questions, tmp_path):
    ok(cli(*RUN, f"task.path={questions}", "method=prs", "budget.samples=4", "task.limit=3", cwd=tmp_path))
    exported = lines(ok(cli("store", "export", cwd=tmp_path)).stdout)
    text = next(tmp_path.rglob("trajectories.jsonl")).read_text()
    samples = {s["draw"]: s for line in lines(text) for s in line["samples"]}
    assert samples.keys() == {draw["draw"] for draw in exported}
    for draw in exported:
        assert draw["scores"][0]["reward"] == samples[draw["draw"]]["reward"]
        assert draw["completion_tokens"] == samples[draw["draw"]]["completion_tokens"]


def test_replay_needs_no_engine_and_names_what_is_missing(questions, tmp_path):
    base = [*RUN, f"task.path={questions}", "method=toa", "task.limit=3"]
    ok(cli(*base, "budget.samples=4", cwd=tmp_path))
    before = next(tmp_path.rglob("trajectories.jsonl")).read_text()
    ok(cli(*base, "budget.samples=4", "engine=replay", cwd=tmp_path))
    assert next(tmp_path.rglob("trajectories.jsonl")).read_text() == before
    result = cli(*base, "budget.samples=8", "engine=replay", cwd=tmp_path)
    assert result.returncode == 1
    assert "the store has no draw" in result.stderr and "problem 'q0', agent" in result.stderr
    assert next(tmp_path.rglob("trajectories.jsonl")).read_text() == before


def test_kill_at_random_moments_then_resume(questions, tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"What is {i}?", "reference": str(i)} for i in range(400)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [*RUN, f"task.path={questions}", "method=toa", "budget.samples=[6,12]", "concurrency=16"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    ok(cli(*arguments, cwd=whole))
    rng = random.Random(time.time_ns())
    stored = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "toa_exp", *arguments],
            cwd=killed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (killed / "results" / "store.sqlite").is_file():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = len(lines(ok(cli("store", "export", cwd=killed)).stdout))
        assert now >= stored
        stored = now
    log = ok(cli(*arguments, cwd=killed))
    relative = Path("results/default/jsonl/simulated/toa/seed=0/trajectories.jsonl")
    assert (killed / relative).read_bytes() == (whole / relative).read_bytes()
    ok(cli("store", "verify", cwd=killed))
    keys = [draw["draw"] for draw in lines(ok(cli("store", "export", cwd=killed)).stdout)]
    reference = [draw["draw"] for draw in lines(ok(cli("store", "export", cwd=whole)).stdout)]
    assert sorted(keys) == sorted(reference) and stored <= len(keys)
    drawn = int(
        (killed / relative).with_name("run.log").read_text().rpartition("drawn=")[2].partition(",")[0]
    )
    assert drawn == len(keys) - stored, log.stderr


def test_two_jobs_on_one_store_agree_with_one_alone(questions, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    shared.mkdir()
    arguments = [*RUN, f"task.path={questions}", "method=toa", "budget.samples=[8,16]"]
    ok(cli(*arguments, cwd=alone))
    jobs = [
        subprocess.Popen([sys.executable, "-m", "toa_exp", *arguments, f"experiment={name}"], cwd=shared)
        for name in ("one", "two")
    ]
    assert [job.wait() for job in jobs] == [0, 0]
    (expected,) = alone.rglob("trajectories.jsonl")
    for path in shared.rglob("trajectories.jsonl"):
        assert path.read_bytes() == expected.read_bytes()
    ok(cli("store", "verify", cwd=shared))


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(questions, tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"What is {i}?", "reference": str(i)} for i in range(20_000)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = subprocess.Popen(
        [sys.executable, "-m", "toa_exp", *RUN, f"task.path={questions}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    while process.poll() is None and not list(tmp_path.rglob("*.partial")):
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "go on with: toa-exp run task=jsonl" in errors and "Traceback" not in errors
    (log,) = tmp_path.rglob("run.log")
    assert log.read_text().rstrip().endswith("stopped")
    ok(cli("store", "verify", cwd=tmp_path))


def test_a_method_of_ones_own_package(questions, tmp_path):
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from toa_exp.core import Request\n\n"
        "def mymethod(problem, agents, budget, rng, *, again=1, alpha=5.0):\n"
        "    assert alpha == 5.0, alpha\n"
        "    for _ in range(budget):\n"
        "        yield [Request(rng.choice(agents))]\n"
    )
    ok(
        cli(
            *RUN, f"task.path={questions}", "method._target_=mypkg.mymethod", "budget.samples=4", cwd=tmp_path
        )
    )
    (curve,) = tmp_path.rglob("curve.csv")
    assert curve.parts[-3] == "mymethod"
    conf = tmp_path / "conf" / "method"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("_target_: mypkg.mymethod\n_partial_: true\nagain: 2\n")
    own = ["--config-dir", "conf", "method=mine", f"task.path={questions}", "budget.samples=4"]
    ok(cli(*RUN, *own, cwd=tmp_path))
    result = cli(*RUN, *own, "method.agian=3", cwd=tmp_path)
    assert result.returncode == 2 and "Did you mean 'again'? Allowed: _target_, again" in result.stderr


@pytest.mark.parametrize("command", [[], ["run"], ["figures"], ["store"]])
def test_help_loads_nothing_heavy(tmp_path, command):
    probe = (
        "import sys; sys.argv = ['toa-exp', *sys.argv[1:]]\n"
        "from toa_exp.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'hydra', 'numpy', 'wandb', 'transformers'} & set(sys.modules)))\n"
    )
    result = ok(
        subprocess.run(
            [sys.executable, "-c", probe, *command, "--help"], cwd=tmp_path, capture_output=True, text=True
        )
    )
    assert result.stdout.endswith("[]\n")
    for word in {"run": ["toa", "gsm8k", "budget"], "figures": ["flops"], "store": ["verify"]}.get(
        "".join(command), ["figures", "store"]
    ):
        assert word in result.stdout


def test_a_failed_rerun_leaves_earlier_results_as_they_were(questions, tmp_path):
    base = [*RUN, f"task.path={questions}", "method=random"]
    ok(cli(*base, "budget.samples=[2]", cwd=tmp_path))
    (folder,) = {path.parent for path in tmp_path.rglob("curve.csv")}
    names = ("config.yaml", "curve.csv", "trajectories.jsonl")
    before = {name: (folder / name).read_bytes() for name in names}
    changed = ["budget.samples=[16]", "engine=replay", "reward.noise=3", "flops=paper"]
    assert cli(*base, *changed, cwd=tmp_path).returncode == 1
    assert {name: (folder / name).read_bytes() for name in names} == before
    failing = [
        f"+ensemble.agents.{name}.options.failure_rate=1.0" for name in ("cedar", "birch", "alder", "rowan")
    ]
    assert cli(*base, "budget.samples=[4]", *failing, cwd=tmp_path).returncode == 1
    with (folder / "curve.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["budget"], row["problems"], row["failed"]) == ("4", "0", "12")
    assert row["best_reward"] == "" and "accuracy" not in row
    assert [line["answer"] for line in lines((folder / "trajectories.jsonl").read_text())] == [None] * 12


def test_a_folder_is_one_process_at_a_time(questions, tmp_path):
    arguments = [*RUN, f"task.path={questions}", "method=random", "budget.samples=2"]
    ok(cli(*arguments, cwd=tmp_path))
    (lock,) = tmp_path.rglob("run.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = cli(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and "another process is running" in result.stderr
    ok(cli(*arguments, cwd=tmp_path))


def test_figures_of_one_run_folder_and_paths_that_need_quotes(questions, tmp_path):
    odd = tmp_path / "größe, a=b.jsonl"
    odd.write_bytes(questions.read_bytes())
    ok(cli(*RUN, f"task.path={odd}", "method=random", "budget.samples=2", cwd=tmp_path))
    (folder,) = {path.parent for path in tmp_path.rglob("curve.csv")}
    written = ok(cli("figures", folder.relative_to(tmp_path), cwd=tmp_path)).stdout
    assert written.count("\n") == 3
    (tmp_path / "größe").mkdir()
    result = cli("figures", "größe", cwd=tmp_path)
    assert result.returncode == 2 and "größe" in result.stderr


def test_results_of_another_configuration_are_replaced_with_a_word(questions, tmp_path):
    base = [*RUN, f"task.path={questions}", "budget.samples=2"]
    assert "another configuration" not in ok(cli(*base, cwd=tmp_path)).stderr
    assert "another configuration" not in ok(cli(*base, "concurrency=2", cwd=tmp_path)).stderr
    result = ok(cli(*base, "task.limit=5", cwd=tmp_path))
    assert "another configuration" in result.stderr and "task.limit None -> 5" in result.stderr


def test_a_budget_in_tokens(questions, tmp_path):
    ok(cli(*RUN, f"task.path={questions}", "budget.unit=tokens", "budget.limit=[3000,6000]", cwd=tmp_path))
    with next(tmp_path.rglob("curve.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["prompt_tokens"]) + float(row["completion_tokens"]) <= float(row["budget"])
    assert float(rows[0]["samples"]) < float(rows[1]["samples"])


def test_swept_keys_are_told_apart_by_folder(questions, tmp_path):
    ok(
        cli("run", "-m", *RUN[1:], f"task.path={questions}", "budget.samples=2", "method=random",
            "selection=last,best_reward", "method.agent=cedar,birch", cwd=tmp_path)
    )  # fmt: skip
    names = {path.parts[-3] for path in tmp_path.rglob("curve.csv")}
    assert names == {
        f"random,selection={selection},agent={agent}"
        for selection in ("last", "best_reward")
        for agent in ("cedar", "birch")
    }
