"""Where a COMET model's files are: a folder in COMET's own layout, a .ckpt file in one, or the hub."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from toa_exp.digests import file_digest
from toa_exp.draws import digest
from toa_exp.ensemble import check_revision, folder_digest
from toa_exp.errors import BadInput, choose
from toa_exp.hub import library

KINDS = ["regression_metric", "referenceless_regression_metric", "unified_metric", "xcomet_metric"]
_HPARAMS = "hparams.yaml"
_WEIGHTS = "checkpoints/model.ckpt"
_OF_ENCODER = ["*.json", "*.model"]  # its configuration and tokenizer; its weights are in the checkpoint
Fetched = TypeVar("Fetched")


class Checkpoint:
    """A model by hub id and revision or by path; `encoder` replaces the pretrained model that it names.

    What is small is read at once, the weights when they are asked for. Raises BadInput for a
    checkpoint that is not there or of a kind that is unknown; `whose` is the configuration's key.
    """

    def __init__(self, model: str, revision: str | None, encoder: str | None, whose: str) -> None:
        check_revision(revision, whose)
        self._model, self._revision, self._whose = model, revision, whose
        self._root = _root(model, whose)
        self._hparams = self._read_hparams()
        self.kind = str(self._hparams.get("class_identifier"))
        if self.kind not in KINDS:
            raise choose(f"class_identifier in {_HPARAMS} of {whose}.model={model}:", self.kind, KINDS)
        named = encoder or self._hparams.get("pretrained_model")
        if not named:
            raise BadInput(f"{whose}.model={model}: {_HPARAMS} names no encoder; give {whose}.encoder")
        self._given = encoder is not None
        self._encoder = str(named)

    @property
    def takes_reference(self) -> bool:
        """Whether the model reads a reference."""
        if self.kind == "unified_metric":
            return "ref" in (self._hparams.get("input_segments") or ["mt", "src", "ref"])
        return self.kind in ("regression_metric", "xcomet_metric")

    @property
    def needs_reference(self) -> bool:
        """Whether it can do nothing without."""
        return self.kind == "regression_metric" or self._hparams.get("input_segments") == ["mt", "ref"]

    def fingerprint(self) -> dict[str, Any]:
        """Hub id and revision, or the content of the files; that of an encoder that was given."""
        if self._root is None:
            found: dict[str, Any] = {"model": self._model, "revision": self._revision}
        else:
            parts = [file_digest(path).encode() for path in (self._root / _HPARAMS, self.weights())]
            found = {"model": f"folder:{digest(*parts).hex()}"}
        if self._given:
            folder = Path(self._encoder).expanduser()
            found["encoder"] = folder_digest(folder) if folder.is_dir() else self._encoder
        return found

    def weights(self) -> Path:
        """The checkpoint file; downloads it where it is not here."""
        if self._root is not None:
            own = Path(self._model).expanduser()
            return own if own.is_file() else self._root / _WEIGHTS
        return self._fetch(functools.partial(_file, self._model, _WEIGHTS, self._revision))

    def encoder(self) -> Path:
        """The folder of the encoder's configuration and tokenizer; downloads them where they are not here."""
        folder = Path(self._encoder).expanduser()
        if folder.is_dir():
            return folder.absolute()
        return self._fetch_of_encoder(functools.partial(_snapshot, self._encoder))

    def config(self) -> dict[str, Any]:
        """The encoder's config.json."""
        path = Path(self._encoder).expanduser() / "config.json"
        if not path.parent.is_dir():
            path = self._fetch_of_encoder(functools.partial(_file, self._encoder, "config.json", None))
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{self._whose}.encoder: {path} cannot be read as JSON: {error}") from error
        if not isinstance(config, dict):
            raise BadInput(f"{self._whose}.encoder: {path} holds no JSON object")
        return config

    def _read_hparams(self) -> Mapping[str, Any]:
        if self._root is not None:
            path = self._root / _HPARAMS
        else:
            path = self._fetch(functools.partial(_file, self._model, _HPARAMS, self._revision))
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise BadInput(f"{self._whose}.model: {path} cannot be read as YAML: {error}") from error
        if not isinstance(found, dict):
            raise BadInput(f"{self._whose}.model: {path} holds no hyper-parameters")
        return found

    def _fetch(self, fetch: Callable[[], Fetched]) -> Fetched:
        revision = "" if self._revision is None else f" at revision {self._revision}"
        return _fetched(
            fetch,
            self._model,
            f"{self._whose}.model={self._model}{revision}",
            f"{self._whose}.model=<folder with {_HPARAMS} and {_WEIGHTS}>",
        )

    def _fetch_of_encoder(self, fetch: Callable[[], Fetched]) -> Fetched:
        return _fetched(
            fetch,
            self._encoder,
            f"{self._whose}.model={self._model} needs config and tokenizer of {self._encoder!r}, which",
            f"{self._whose}.encoder=<folder with config.json, tokenizer.json and sentencepiece.bpe.model>",
        )


def _root(model: str, whose: str) -> Path | None:
    """The folder that has hparams.yaml; None for a hub id. Raises BadInput for a path to nothing."""
    path = Path(model).expanduser()
    root = path.parent.parent if path.is_file() else path
    if not path.exists():
        if model.count("/") == 1 and not model.startswith((".", "/", "~")) and path.suffix != ".ckpt":
            return None
        raise BadInput(f"{whose}.model={model}: no such folder; {_layout(whose)}")
    for needed in (root / _HPARAMS, path if path.is_file() else root / _WEIGHTS):
        if not needed.is_file():
            raise BadInput(f"{whose}.model={model}: there is no {needed}; {_layout(whose)}")
    return root.absolute()


def _layout(whose: str) -> str:
    return f"give {whose}.model=<hub id>, or a folder with {_HPARAMS} and {_WEIGHTS}, or that .ckpt file"


def _fetched(fetch: Callable[[], Fetched], repository: str, what: str, mend: str) -> Fetched:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    page = f"https://huggingface.co/{repository}"
    try:
        return fetch()
    except GatedRepoError as error:
        raise BadInput(
            f"{what} is gated: accept its licence at {page}, then log in with `hf auth login` or set "
            f"HF_TOKEN. Or copy it from a machine that has it, and give {mend}"
        ) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadInput(
            f"{what} is neither a folder here nor could it be had from the hub ({type(error).__name__}). "
            f"Check name, revision and connection. Where the hub is out of reach, copy it from {page} and "
            f"give {mend}"
        ) from error


def _file(repository: str, name: str, revision: str | None) -> Path:
    return Path(library().hf_hub_download(repository, name, revision=revision))


def _snapshot(repository: str) -> Path:
    return Path(library().snapshot_download(repository, allow_patterns=_OF_ENCODER))
