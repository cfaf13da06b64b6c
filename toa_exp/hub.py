"""What is asked of the Hugging Face hub about models: once in a process, for all who need it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from pathlib import Path
from types import ModuleType

from toa_exp.errors import BadInput

_ONE_AT_A_TIME = threading.Lock()
_KEPT = 60.0  # seconds that a failure is remembered
_failed_at: float | None = None  # the first of those that are remembered
_AWAY = threading.Event()  # the hub could not be reached, so that only its cache is looked at for now


def library() -> ModuleType:
    """huggingface_hub, whose log lines go where all others go, and nowhere else.

    It gives its logger a handler, without a setting against it, when it first uses it.
    """
    import huggingface_hub
    import huggingface_hub.utils.logging  # this adds the handler, and is imported late

    logging.getLogger("huggingface_hub").handlers.clear()
    return huggingface_hub


def config_file(model: str, revision: str | None, whose: str) -> Path:
    """The config.json of a hub id in the hub's cache; `whose` names the owner in errors.

    Raises BadInput where it cannot be had, at once where that was found out within the last minute: later
    cells of a sweep may find the hub there again.
    """
    global _failed_at
    with _ONE_AT_A_TIME:
        if _failed_at is not None and time.monotonic() - _failed_at > _KEPT:
            _asked.cache_clear()
            _AWAY.clear()
            _failed_at = None
        found = _asked(model, revision)
        if not isinstance(found, Path) and _failed_at is None:
            _failed_at = time.monotonic()
    if isinstance(found, Path):
        return found
    raise BadInput(
        f"{whose}: {model!r} is neither a folder here nor could its config.json be had from the hub {found}"
    )


@functools.cache
def _asked(model: str, revision: str | None) -> Path | str:
    """Where config.json lies, or why it cannot be had and what to do."""
    hub = library()
    # HTTPError is that of the HTTP library, httpx or its successor, that it was written for.
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as NoAnswer  # type: ignore[attr-defined]

    gone = _AWAY.is_set()
    counted = "or, where it runs elsewhere, say what its FLOPs are counted from: `architecture`, a folder"
    try:
        return Path(hub.hf_hub_download(model, "config.json", revision=revision, local_files_only=gone))
    except (NoAnswer, HFValidationError, OSError) as error:
        refused = isinstance(error, (HFValidationError, OSError))  # the hub's answers are OSErrors
        if refused and not isinstance(error, LocalEntryNotFoundError):
            return (
                f"({type(error).__name__}). Check name and revision, and log in (hf auth login) where "
                f"it is gated, {counted}, a hub id or the fields of a config.json"
            )
        mend = f"give a folder as its model, {counted} or the fields of a config.json"
        if hub.is_offline_mode():
            return f"(HF_HUB_OFFLINE is set, and it is not in the cache). Unset it, {mend}"
        _AWAY.set()
        lines = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        why = "cannot be reached, and it is not in the cache" if gone else f"cannot be reached: {lines[0]}"
        return (
            f"(which {why}). Check the connection, {mend}; HF_HUB_OFFLINE=1 takes models from the cache "
            f"without asking for them"
        )
