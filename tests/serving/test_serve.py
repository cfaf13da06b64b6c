"""toa-exp serve with real models in real processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import cli, lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc"),
]
_PATIENCE = 1500.0  # seconds; vLLM takes minutes to start where others use the machine too
LAB = ["task=lab_math", "ensemble=lab", "task.problems=12"]
RUN = ["method=toa", "budget.samples=8", "tracking.mode=disabled"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


class Serving:
    """A `toa-exp serve` that is up, and the command that it says runs use it with."""

    def __init__(self, process: subprocess.Popen[str], said: str) -> None:
        self.process = process
        self.said = said
        (line,) = (line for line in said.splitlines() if line.strip().startswith("toa-exp run"))
        self.command = shlex.split(line)[1:]

    def command_from(self, folder: Path) -> list[str]:
        """The command as it reads elsewhere; `folder` is where the servers were started."""
        return [part.replace("results/serve", str(folder / "results/serve")) for part in self.command]

    def children(self) -> list[int]:
        """The processes below it that are no guards."""
        found, parents = [], [self.process.pid]
        while parents:
            parents = [pid for pid, parent in processes() if parent in parents]
            found += parents
        return [pid for pid in found if b"guard.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def processes() -> list[tuple[int, int]]:
    """All processes that are no zombies, each with its parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found.append((int(path.parent.name), int(parent)))
    return found


def gone(pids: list[int]) -> bool:
    return not {pid for pid, _ in processes()} & set(pids)


def until(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


@contextmanager
def serve(folder: Path, *arguments: str, **environment: str) -> Iterator[Serving]:
    """`toa-exp serve`, ended however the test ends."""
    out, errors = folder / "out", folder / "errors"
    with out.open("w") as stdout, errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "toa_exp", "serve", *arguments],
            cwd=folder, env={**ENVIRONMENT, **environment}, stdout=stdout, stderr=stderr, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        until(lambda: "Ctrl-C" in out.read_text() or process.poll() is not None, _PATIENCE)
        assert process.poll() is None, errors.read_text()
        yield Serving(process, out.read_text())
    finally:
        process.terminate()
        process.wait(60)


def trajectories(folder: Path) -> list[object]:
    """What was drawn, scored and chosen."""
    (path,) = folder.rglob("trajectories.jsonl")
    return [(line["problem"], line["samples"], line["answer"]) for line in lines(path.read_text())]


def test_a_run_on_the_servers_survives_the_death_of_each(tmp_path):
    with serve(tmp_path, *LAB) as serving:
        calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
        command = serving.command_from(tmp_path)
        for folder in (calm, disturbed):
            folder.mkdir()
        done = cli(*command, *RUN, cwd=calm, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert "|ensemble:served|" in done.stdout and "|reward:served|engine:openai|" in done.stdout
        again = cli("serve", *LAB, cwd=tmp_path, env=ENVIRONMENT)
        assert again.returncode == 2 and "another toa-exp serve" in again.stderr
        before = serving.children()
        assert len(before) == 2
        run = subprocess.Popen(
            [sys.executable, "-m", "toa_exp", *command, *RUN],
            cwd=disturbed, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(lambda: (disturbed / "results" / "store.sqlite").exists(), 60)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
        assert trajectories(disturbed) == trajectories(calm)
        assert not set(serving.children()) & set(before)
        # What the servers drew is what the same agents would have drawn in the run itself.
        here = cli("run", *LAB, *RUN, "engine=replay", f"store.path={calm}/results/store.sqlite",
                   f"--config-dir={tmp_path}/results/serve", "reward=served", cwd=tmp_path)  # fmt: skip
        assert here.returncode == 0, here.stderr
    assert "starting it again" in (tmp_path / "errors").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_servers_end_with_it_however_it_ends(number, tmp_path):
    with serve(tmp_path, *LAB, "ensemble=simulated", "reward=lab_judge") as serving:
        children = serving.children()
        assert len(children) == 1 and "ensemble=served" not in serving.command
        serving.process.send_signal(number)
        serving.process.wait(30)
        until(lambda: gone(children), 30)
    assert serving.process.returncode == (-9 if number == signal.SIGKILL else 0)


def test_a_server_that_cannot_start_ends_the_others_and_says_why(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    given = [*LAB, f"ensemble.agents={{ash:{{model:{broken}}}}}", "reward=lab_judge"]
    result = cli("serve", *given, cwd=tmp_path, env=ENVIRONMENT)
    assert result.returncode == 1 and "transformers server of ash did not come up" in result.stderr
    assert "agent 'ash'" in result.stderr and "Traceback" not in result.stdout
    mine = [pid for pid, _ in processes() if str(tmp_path).encode() in cmdline(pid)]
    assert not mine


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_bad_input(tmp_path):
    for wrong, message in (
        (["-m", "method=toa,prs"], "one configuration"),
        (["server=sglang"], "Allowed: auto"),
        (["ensemble=simulated"], "nothing to serve"),
    ):
        result = cli("serve", *wrong, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_run_on_vllms_own_server(tmp_path):
    options = "+ensemble.agents.ada.options={max_model_len:512,max_num_seqs:64}"
    given = [*LAB, "~ensemble.agents.ben", "~ensemble.agents.cleo", "~ensemble.agents.dan", options]
    with serve(tmp_path, *given, "server=vllm", OMP_NUM_THREADS="1") as serving:
        assert re.search(r"agent ada: http://127\.0\.0\.1:\d+/v1", serving.said)
        children = serving.children()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            command = [
                arg.replace("results/serve", str(tmp_path / "results/serve")) for arg in serving.command
            ]
            done = cli(*command, *RUN, cwd=tmp_path / name, env=ENVIRONMENT, timeout=_PATIENCE)
            assert done.returncode == 0, done.stderr
        assert trajectories(tmp_path / "one") == trajectories(tmp_path / "two")
        doctor = cli("doctor", *command[1:], cwd=tmp_path, env=ENVIRONMENT, timeout=_PATIENCE)
        assert doctor.returncode == 0 and "reachable, has" in doctor.stdout, doctor.stdout
        serving.process.send_signal(signal.SIGKILL)
        until(lambda: gone(children), 60)
