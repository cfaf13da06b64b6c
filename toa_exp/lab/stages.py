"""What a training leaves in its work folder: finished stages, and a manifest of what decided them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from toa_exp.errors import BadInput

MANIFEST = "manifest.json"
_SUFFIXES = {".json", ".safetensors"}

Attempts = list[tuple[str, list[str]]]
"""Prompts with sampled answers."""


class Stages:
    """The finished stages in `folder`; all were made with the values `decided`, else BadInput is raised."""

    def __init__(self, folder: Path, decided: Mapping[str, Any]) -> None:
        self.folder = folder
        made: Any = json.loads(json.dumps(decided))  # as they are read back
        manifest = folder / MANIFEST
        if manifest.exists():
            self._compare(_read(manifest), made)
        elif self.done():
            raise BadInput(
                f"{folder} holds stages of a training, but no {MANIFEST} that says with which seed, "
                f"effort and device they were made. {self._mend()}"
            )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(manifest, lambda path: path.write_text(json.dumps(made, indent=1) + "\n"))

    def done(self) -> list[str]:
        """The names of the finished stages."""
        paths = self.folder.glob("*") if self.folder.is_dir() else ()
        return sorted(p.stem for p in paths if p.suffix in _SUFFIXES and p.name != MANIFEST)

    def parameters(self, name: str, take: Callable[[dict[str, Tensor]], object]) -> bool:
        """Whether the stage is finished; `take` gets its parameters. Raises BadInput for a damaged file."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return False
        try:
            take(load_file(path))
        except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: other names or shapes
            raise _damaged(path, error) from error
        return True

    def keep(self, name: str, parameters: Mapping[str, Tensor]) -> None:
        """Write the parameters of a finished stage."""
        tensors = {key: value.clone() for key, value in parameters.items()}
        _write(self.folder / f"{name}.safetensors", lambda path: path.write_bytes(save(tensors)))

    def attempts(self, name: str) -> Attempts | None:
        """The samples of a finished stage, None where it is not. Raises BadInput for a damaged file."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        read = _read(path)
        try:
            return [(str(prompt), [str(answer) for answer in answers]) for prompt, answers in read]
        except (TypeError, ValueError) as error:
            raise _damaged(path, error) from error

    def keep_attempts(self, name: str, attempts: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Write the samples of a finished stage."""
        _write(self.folder / f"{name}.json", lambda path: path.write_text(json.dumps(attempts)))

    def _compare(self, found: Any, made: Mapping[str, Any]) -> None:
        if not isinstance(found, dict):
            raise _damaged(self.folder / MANIFEST, TypeError("no JSON object"))
        for key, value in made.items():
            if found.get(key) != value:
                raise BadInput(
                    f"the stages in {self.folder} were made with {key}={found.get(key)}, and this training "
                    f"has {key}={value}. {self._mend()}"
                )

    def _mend(self) -> str:
        return f"Give another folder (to=<folder>, or work=<folder>), or delete {self.folder}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BadInput:
    reason = (str(error).strip().splitlines() or [""])[0]
    if path.name == MANIFEST:
        mend = f"delete {path.parent} and train again"
    else:
        mend = "delete the file and rerun: the stage is made again"
    return BadInput(f"{path} is damaged ({type(error).__name__}: {reason}); {mend}")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    write(partial)
    partial.replace(path)
