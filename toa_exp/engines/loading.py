"""Models and tokenizers from a folder or the hub, for all that run them in this process.

Nothing of torch or transformers is imported before something is loaded. Code that comes with a model
is never run and weights are read from safetensors only, since other formats may hold code.
"""

from __future__ import annotations

import functools
import gc
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toa_exp import hub
from toa_exp.draws import Message
from toa_exp.engines import checkpoints
from toa_exp.errors import BadInput, Unavailable, choose
from toa_exp.mends import damaged, missing, room

if TYPE_CHECKING:
    import torch

DTYPES = ["auto", "float64", "float32", "bfloat16", "float16"]
# While it loads, transformers switches off the initialisation of weights for all threads, and two models
# loaded at once may find tied weights missing. vLLM uses it too.
ONE_AT_A_TIME = threading.RLock()
# Held by who makes tokens, whose library reads the environment, and by who changes that: C code that reads a
# variable while another thread sets one ends the whole process.
ENVIRONMENT = threading.RLock()
# Parameters under which threads on a CPU wait for each other longer than they compute.
_SMALL = 2_000_000
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger(__name__)


def check_placement(what: str, device: str, dtype: str) -> None:
    """Raise BadInput for a device or a number format that does not exist; `what` owns the fields."""
    if not _DEVICE.fullmatch(device):
        raise choose(f"{what}.device", device, ["auto", "cpu", "cuda", "cuda:0"])
    if dtype not in DTYPES:
        raise choose(f"{what}.dtype", dtype, DTYPES)


def check_model(model: str, whose: str) -> None:
    """Raise BadInput where `model` is written as a path and is no folder."""
    if model.startswith(("/", ".", "~")) and not Path(model).expanduser().is_dir():
        raise BadInput(f"{whose}: there is no folder {model!r}; {missing(model)}")


def device_of(device: str, field: str = "device") -> torch.device:
    """The device that `field` names; "auto" is CUDA where there is one.

    Raises BadInput for CUDA where there is none.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise BadInput(
            f"{field}={device!r} is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices. Set {field}=cpu, or install torch for CUDA"
        )
    return chosen


def import_libraries() -> None:
    """Import all that models need; a thread that works with them calls this first.

    The modules of transformers import each other when they are first asked for something, and two
    threads that do so at once may find them half made.
    """
    with ONE_AT_A_TIME:
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

        hub.library()

        import toa_exp.engines.decoding  # noqa: F401

        _usual_threads()


@functools.cache
def _usual_threads() -> int:
    """How many threads torch takes, asked before any is told another number."""
    import torch

    return torch.get_num_threads()


def threads_for(model: Any) -> int:
    """How many threads `model` gains by on a CPU, for `torch.set_num_threads` in the thread that runs it.

    One below two million parameters, else torch's own number (OMP_NUM_THREADS, by default all cores).
    """
    small = sum(weights.numel() for weights in model.parameters()) < _SMALL
    return 1 if small else _usual_threads()


def load_tokenizer(model: str, revision: str | None, whose: str, *, chat: bool = True) -> Any:
    """The tokenizer of a model, which must have a template where it is for `chat`; raises BadInput.

    Warns of a model of the hub whose revision is no commit, since another one may be there tomorrow.
    """
    import_libraries()
    from transformers import AutoTokenizer

    where = _folder_or_id(model)
    if not Path(where).is_dir():
        hub.config_file(model, revision, whose)  # transformers would ask for each of several files in vain
    try:
        with ONE_AT_A_TIME:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for a broken file
        raise _unusable(whose, model, "tokenizer", error) from error
    if chat and not tokenizer.chat_template:
        raise BadInput(
            f"{whose}: the tokenizer of {model!r} has no chat template. Use a model trained for chat, or "
            f"put chat_template.jinja beside its tokenizer.json"
        )
    if not Path(where).is_dir() and not _COMMIT.fullmatch(revision or ""):
        log.warning(
            "%s: %r is taken as the hub has it today%s, and stored samples and scores of another day count "
            "as its own. Pin it: revision: <commit>",
            whose, model, _commit(model, revision),
        )  # fmt: skip
    return tokenizer


def _commit(model: str, revision: str | None) -> str:
    """Which commit was loaded, where the hub's cache tells."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "tokenizer_config.json", revision=revision)
    return f" (commit {Path(cached).parent.name})" if isinstance(cached, str) else ""


def generation_config(model: str, revision: str | None, whose: str) -> Any:
    """How a model is generated from by default; what its config says where it has no such file."""
    import_libraries()
    from transformers import AutoConfig, GenerationConfig

    where = _folder_or_id(model)
    try:
        with ONE_AT_A_TIME:
            try:
                return GenerationConfig.from_pretrained(where, revision=revision or "main")
            except OSError:
                config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
                return GenerationConfig.from_model_config(config)
    except Exception as error:  # as for the tokenizer
        raise _unusable(whose, model, "configuration", error) from error


def stop_tokens(generation: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, of the generation config and of the tokenizer together.

    Both count, since a model tuned for chat often carries the generation config of its base.
    """
    stop = generation.eos_token_id
    stop = stop if isinstance(stop, list) else [stop]
    return frozenset(token for token in [*stop, tokenizer.eos_token_id] if token is not None)


def text_of(tokenizer: Any, tokens: list[int]) -> str:
    """What the tokens of an answer say."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def load_model(
    family: str | type, model: str, revision: str | None, device: torch.device, dtype: str, whose: str
) -> Any:
    """A model on `device`, ready to run; `family` is the class to load it with, or its name in transformers.

    `dtype` "auto" is float32 on a CPU and the checkpoint's own on CUDA. Raises BadInput where the
    weights are missing, damaged or of another shape than the config says, or of another kind of model,
    and Unavailable where the device has no memory left for them.
    """
    import_libraries()
    import torch
    import transformers

    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    loaded: Any = None
    try:
        with ONE_AT_A_TIME, _quiet():
            kind: Any = getattr(transformers, family) if isinstance(family, str) else family
            config, _ = transformers.PreTrainedConfig.get_config_dict(_folder_or_id(model), revision=revision)
            names = config.get("architectures") or []
            checkpoints.check_kind(kind.__name__, names, model, whose)
            loaded, info = kind.from_pretrained(
                _folder_or_id(model),
                revision=revision,
                dtype="float32" if dtype == "float64" else dtype,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        checkpoints.check_complete(info, names, model, whose)
        if dtype == "float64":  # only now: while it loads, its format is torch's default, for all threads
            loaded = loaded.double()
        return loaded.to(device).eval()
    except BadInput:
        raise
    except torch.OutOfMemoryError:
        pass  # nothing holds on to it, as its cause would: with it goes the part that did fit
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise _unusable(whose, model, "model", error) from error
    del loaded
    free_memory()
    raise Unavailable(
        f"{whose}: {model!r} does not fit on {device} beside what is there. Free memory there, {room(whose)}"
    )


def free_memory() -> None:
    """Give back what models that nobody holds any more took."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar and the warnings of transformers: what matters of them is raised."""
    from transformers.utils import logging as messages

    level, bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity(logging.ERROR)
    messages.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if bar:
            messages.enable_progress_bar()  # type: ignore[no-untyped-call]


def _folder_or_id(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder) if folder.is_dir() else model


def _unusable(whose: str, model: str, what: str, error: Exception) -> BadInput:
    reason = str(error).strip().splitlines() or [""]
    return BadInput(
        f"{whose}: the {what} of {model!r} cannot be loaded ({type(error).__name__}: {reason[0]}). Check "
        f"that config.json, tokenizer.json and the safetensors files are there and whole, or {damaged(model)}"
    )


def render(tokenizer: Any, messages: Sequence[Message], whose: str, *, reply: bool) -> str:
    """The text of a chat; `reply` adds what opens the answer of the assistant.

    Raises BadInput where the chat template refuses the messages.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise BadInput(
            f"{whose}: its chat template refuses messages of {roles} ({error}). Change the task's prompts, "
            f"e.g. leave out the system message"
        ) from error
    return text


def token_ids(tokenizer: Any, messages: Sequence[Message], whose: str, *, reply: bool) -> list[int]:
    """The tokens of a chat, as `render` words it; raises BadInput where there are none."""
    with ENVIRONMENT:
        text = render(tokenizer, messages, whose, reply=reply)
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise BadInput(f"{whose}: its chat template makes no tokens of the messages; mend the template")
    return ids


def window_of(config: Any) -> int | None:
    """The most tokens a model reads and writes together; None where its config sets no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)
