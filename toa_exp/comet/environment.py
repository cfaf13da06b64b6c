"""The Python environment that has unbabel-comet, which this package's own cannot have."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

from toa_exp.errors import BadInput, Unavailable

VARIABLE = "TOA_EXP_COMET_PYTHON"
_PLACE = Path(".venv-comet", "bin", "python")
_CHECKOUT = Path(__file__).parents[2]
_PATIENCE = 300.0  # seconds; importing torch from a cold network disk takes long
_VERSION = "from importlib.metadata import version; print(version('unbabel-comet'))"
_GPUS = "import torch; print(torch.cuda.device_count())"
_MEND = (
    "Make it with `make comet-env` in a checkout of toa-exp, or elsewhere with `python3 -m venv <folder> && "
    "<folder>/bin/pip install -r requirements/comet.txt`, and say where it is: "
    f"{{whose}}.python=<folder>/bin/python, or {VARIABLE}=<folder>/bin/python in the environment"
)


def python_of(given: str | None, whose: str) -> Path:
    """The interpreter: as given, as the environment says, or that of .venv-comet here or in the checkout.

    Raises BadInput where there is none.
    """
    named = given or os.environ.get(VARIABLE)
    places = [Path(named).expanduser()] if named else [Path.cwd() / _PLACE, _CHECKOUT / _PLACE]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place.absolute()  # a link of a virtual environment must not be resolved
    raise BadInput(
        f"{whose}: COMET needs an environment of its own, and there is no interpreter at "
        f"{' or '.join(map(str, places))}. {_MEND.format(whose=whose)}"
    )


def version_of(python: Path, whose: str) -> str:
    """The version of unbabel-comet there; raises BadInput where it is not installed."""
    try:
        return _said(python, _VERSION)
    except (subprocess.SubprocessError, OSError) as error:
        raise BadInput(f"{whose}: {python} has no unbabel-comet. {_MEND.format(whose=whose)}") from error


def gpus_of(python: Path) -> int:
    """How many GPUs the torch of that environment sees; raises Unavailable where it cannot say."""
    try:
        return int(_said(python, _GPUS))
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise Unavailable(f"the torch of {python} does not say which GPUs there are {said}") from error


@functools.cache
def _said(python: Path, code: str) -> str:
    done = subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, text=True, timeout=_PATIENCE, check=True
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
