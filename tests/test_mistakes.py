"""What the command says of input that cannot be, of full disks, and where nobody reads it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import cli
from test_cli import RUN, ok


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=tao"], "Did you mean 'toa'? Allowed: moa, parallel"),
        (["metod=toa"], "unknown group or key 'metod'. Did you mean 'method'?"),
        (["method.alhpa=1"], "Did you mean 'alpha'? Allowed: _target_, alpha, tau, width"),
        (["ensemble.agents.cedra.model=x"], "Did you mean 'cedar'? Allowed: alder, birch, cedar, rowan"),
        (["+ensemble.agents.cedar.modle=x"], "Did you mean 'model'?"),
        (["ensemble.agents={x:{modle:y}}"], "agent 'x' has no model"),
        (["ensemble.agents={x:{model:y}}"], "engine=simulator cannot run"),
        (["task.path=none.jsonl"], "no such file"),
        (["budget.unit=tokns"], "Did you mean 'tokens'?"),
        (["flops=papr"], "Did you mean 'paper'?"),
        (["selection=majority"], "majority_vote"),
        (["seed=-1"], "seed=-1"),
        (["method.width=wide"], "method"),
        (["method._target_=nopkg.method"], "nopkg"),
        (["+method.beam=3"], "Allowed: alpha, tau, width"),
        (["reward=verifier", "task.fields.reference=none"], "needs the metric 'accuracy'"),
        (["broken"], "broken"),
        (["method.agent=cedr", "method=random"], "'cedr'; the ensemble has cedar, birch"),
        (["+ensemble.agents.cedar.price={promt:1}"], "Did you mean 'prompt'? Allowed: completion, prompt"),
        (["+budget.foo=1"], "Allowed: limit, max_samples, samples, unit"),
        (["method.tau=x"], "method.tau=x: expected float or int"),
        (["reward.noise=loud"], "reward.noise=loud: expected float or int"),
        (["ensemble.agents.cedar.options.skill=high"], "options.skill=high: expected float or int"),
        (["experiment=null"], "experiment=None"),
        (["experiment=labb", "seed=-1"], "experiment=labb is a name of your own, not 'lab'"),
        (["seed=99999999999999999999"], "seed=99999999999999999999"),
        (["seed=1.5"], "seed=1.5"),
        (["ensemble.sampling=hot"], "ensemble.sampling=hot: expected a mapping"),
        (["task.path=???"], "task.path has no value; give task.path=<value>"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(questions, tmp_path, arguments, message):
    result = cli(*RUN, f"task.path={questions}", "budget.samples=2", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_command_names_the_others(tmp_path):
    result = cli("rnu", cwd=tmp_path)
    assert result.returncode == 2 and "Did you mean 'run'?" in result.stderr


def test_the_log_has_what_ended_a_run_as_an_error_and_the_terminal_has_it_once(questions, tmp_path):
    result = cli(*RUN, f"task.path={questions}", "budget.samples=2", "seed=-1", cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count("seed=-1") == 1
    [log] = tmp_path.rglob("run.log")
    assert re.search(r"ERROR toa_exp\.app: failed: .*seed=-1", log.read_text())


def test_the_overview_is_a_table(tmp_path):
    rows = [line for line in ok(cli("--help", cwd=tmp_path)).stdout.splitlines() if line.startswith("  ")]
    (width,) = {re.match(r"  \w+ +", row).end() for row in rows}
    assert len(rows) > 5 and width > len("  overoptimisation")


def test_every_failing_cell_of_a_sweep_says_why_and_the_others_run(questions, tmp_path):
    (tmp_path / "boom.py").write_text(
        "from toa_exp.core import Request\n\n"
        "def boom(problem, agents, budget, rng):\n"
        "    yield [Request(agents[0])]\n"
        "    raise KeyError('lost it')\n"
    )
    conf = tmp_path / "conf" / "method"
    conf.mkdir(parents=True)
    (conf / "boom.yaml").write_text("_target_: boom.boom\n_partial_: true\n")
    result = cli("run", "-m", "--config-dir=conf", *RUN[1:], f"task.path={questions}", "budget.samples=2",
                 "method=boom,random", "budget.max_samples=8", "flops=model,papr", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2
    assert "KeyError: 'lost it'" in result.stderr and "Did you mean 'paper'?" in result.stderr
    names = {path.parts[-3] for path in tmp_path.rglob("curve.csv")}
    assert names == {"random,flops=model"}


def test_seeds_of_different_configurations_are_no_curve(questions, tmp_path):
    base = [*RUN, f"task.path={questions}", "method=random", "budget.samples=2"]
    ok(cli(*base, "seed=0", cwd=tmp_path))
    ok(cli(*base, "seed=1", "ensemble.sampling.temperature=0.5", cwd=tmp_path))
    result = cli("figures", "results", cwd=tmp_path)
    assert result.returncode == 2 and "differ in configuration" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["doctor", "task=simulated"],
        [
            "run",
            "task=simulated",
            "task.problems=2",
            "method=random",
            "budget.samples=1",
            "tracking.mode=disabled",
        ],
        ["run", "-m", "task=simulated", "task.problems=2", "method=random,prs", "budget.samples=1"],
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_a_command_that_nobody_reads_ends_quietly(arguments, together, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does once it has its lines
    try:
        result = subprocess.run(
            [sys.executable, "-m", "toa_exp", *arguments],
            cwd=tmp_path,
            stdout=writing,
            stderr=writing if together else subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(writing)
    assert result.returncode == 141
    assert together or not re.search("Traceback|BrokenPipe|Error", result.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_in_a_line_and_no_traceback(questions, tmp_path):
    ok(cli(*RUN, f"task.path={questions}", "method=toa", "budget.samples=[4]", cwd=tmp_path))
    result = cli("store", "export", "out=/dev/full", cwd=tmp_path)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr and "the disk has space" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interpolation_that_is_refused_says_so_alone(tmp_path):
    result = cli("run", "task=simulated", "ensemble=lab", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("toa-exp run: the lab's model 'ada' answers")
