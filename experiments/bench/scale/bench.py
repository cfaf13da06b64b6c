"""What a sample costs this package, and whether memory is bounded: TOA on simulated agents at growing size.

Every size runs `toa-exp run` as a process of its own in an empty folder: configuration, search, store,
accounting, scoring and results, as a user has them. CPU time (user and system) and peak memory are
those that the operating system counts for that process. Since machines and their load differ, a fixed
pure-Python loop is timed every quarter of a second, while the process is held; the result is the CPU
time of a sample as a multiple of one turn of that loop.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import itertools
import json
import os
import platform
import pstats
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from toa_exp import __version__

MEGABYTE = 1e6
TURNS = 500  # of the reference loop each time
PAUSE = 0.25  # seconds between two timings of it
PROFILED = 2000  # problems


@dataclass(frozen=True, slots=True)
class Measured:
    """One process: `turn` is what a turn of the reference loop took meanwhile, `store` in bytes."""

    problems: int
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    store_bytes: int
    turn_seconds: float


def overrides(problems: int, samples: int, seed: int) -> list[str]:
    """The command line of a size, after `toa-exp run`."""
    return [
        "task=simulated",
        f"task.problems={problems}",
        "ensemble=simulated",
        "method=toa",
        f"budget.samples=[{samples}]",
        f"seed={seed}",
        "tracking.mode=disabled",
    ]


def reference() -> float:
    """CPU seconds of one turn of the reference loop: build a dictionary, dump it as JSON, hash it."""
    started = time.process_time()
    for number in range(TURNS):
        record = {"agent": f"agent{number % 4}", "number": number, "reward": number / 7, "parents": [number]}
        hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return (time.process_time() - started) / TURNS


def run(problems: int, options: argparse.Namespace) -> Measured:
    """Run one size in a process of its own; raises SystemExit where it fails."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = [
            sys.executable,
            "-m",
            "toa_exp",
            "run",
            *overrides(problems, options.samples, options.seed),
        ]
        started = time.perf_counter()
        with open(os.devnull, "wb") as silence:
            process = subprocess.Popen(command, cwd=folder, stdout=silence, env={**os.environ, **_ONE_THREAD})
        turns = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            # Not `process.send_signal`: that collects a process that has ended, and `wait4` has none left.
            os.kill(process.pid, signal.SIGSTOP)  # two threads of one core would slow each other down
            turns.append(reference())
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(PAUSE)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        return Measured(
            problems,
            usage.ru_utime + usage.ru_stime,
            wall,
            _bytes(usage.ru_maxrss),
            sum(path.stat().st_size for path in Path(folder, "results").glob("store.sqlite*")),
            statistics.median(turns),
        )


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _bytes(peak: int) -> int:
    """What `ru_maxrss` counts in kilobytes, except on macOS."""
    return peak if sys.platform == "darwin" else peak * 1024


def report(start: Measured, sizes: list[Measured], samples: int) -> None:
    """One line a size; `start` is the run of one problem."""
    print(
        " problems   samples  ratio  ratio w/o start  us/sample  us w/o start  reference us"
        "  peak MB  store MB  bytes/sample  wall s"
    )
    for size in sizes:
        drawn = size.problems * samples
        whole = size.cpu_seconds / drawn
        rest = (
            (size.cpu_seconds - start.cpu_seconds) / (drawn - samples) if size.problems > 1 else float("nan")
        )
        print(
            f"{size.problems:9} {drawn:9} {whole / size.turn_seconds:6.1f} {rest / size.turn_seconds:16.1f} "
            f"{whole * 1e6:10.1f} {rest * 1e6:13.1f} {size.turn_seconds * 1e6:13.2f} "
            f"{size.peak_bytes / MEGABYTE:8.1f} {size.store_bytes / MEGABYTE:9.1f} "
            f"{size.store_bytes / drawn:13.0f} {size.wall_seconds:7.1f}",
            flush=True,
        )


def growth(sizes: list[Measured]) -> None:
    """How peak memory grows from each size to the next, as a ratio and in bytes a further problem."""
    for smaller, larger in itertools.pairwise(sizes):
        added = larger.peak_bytes - smaller.peak_bytes
        print(
            f"peak memory, {larger.problems} problems over {smaller.problems}: "
            f"{larger.peak_bytes / smaller.peak_bytes:.2f} times ({added / MEGABYTE:+.1f} MB, "
            f"{added / (larger.problems - smaller.problems):.0f} bytes a further problem)"
        )


def profile(options: argparse.Namespace) -> None:
    """The 25 functions of a run in this process that take most time themselves."""
    from toa_exp.commands import run as command

    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.chdir(folder)
        arguments = overrides(PROFILED, options.samples, options.seed)
        status = profiler.runcall(command.main, arguments)
        os.chdir("/")
    if status:
        raise SystemExit(f"the run ended with {status}")
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(25)
    print(_signature(options, problems=PROFILED))


def _signature(options: argparse.Namespace, **more: object) -> str:
    parts = {
        "bench": "scale",
        "unit": "CPU of the process over CPU of a reference turn, medians of turns",
        "task": "simulated",
        "ensemble": "simulated",
        "method": "toa",
        "N": options.samples,
        "seed": options.seed,
        **more,
        "runs": 1,
        "toa-exp": __version__,
        "python": platform.python_version(),
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def main() -> None:
    options = _options()
    os.nice(options.nice)
    if options.profile:
        profile(options)
        return
    start = run(1, options)
    sizes = [run(problems, options) for problems in options.problems]
    report(start, [start, *sizes], options.samples)
    growth(sizes)
    own = _bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(f"least peak that could be seen, that of this bench: {own / MEGABYTE:.1f} MB")
    print(_signature(options, n=options.problems))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--samples", type=int, default=16, help="a problem, N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the runs' folders are made and removed; the system's if none")
    parser.add_argument("--nice", type=int, default=0, help="how much to yield to other processes")
    parser.add_argument("--profile", action="store_true", help=f"profile {PROFILED} problems instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
