"""How much memory a model takes, read from its files without loading them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toa_exp.cost import field_of, text_part
from toa_exp.engines.loading import import_libraries
from toa_exp.ensemble import model_config
from toa_exp.errors import BadInput, choose
from toa_exp.hub import library

log = logging.getLogger(__name__)

CPU = "the CPU"
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Bytes a parameter, scales and what stays in 16 bits included; vLLM quantises so while it loads.
_QUANTISED = {"fp8": 1.15, "bitsandbytes": 0.7}
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_INDEX = "model.safetensors.index.json"


class UnknownSize(BadInput):
    """A model's files do not say what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes of the weights, bytes that a token takes in the KV cache, and the most tokens of a sequence.

    `heads` are the attention heads, `pairs` those of keys and values, and `quantised` says that the files
    have less than 16 bits.
    """

    weights: int
    cache: int
    window: int | None
    heads: int
    pairs: int
    quantised: bool


def weights_of(model: str, revision: str | None, whose: str, *, dtype: str = "auto") -> int:
    """Bytes of a model's weights in a number format, "auto" for that of its files.

    Raises BadInput where the model has no config.json, and UnknownSize where it is of no known class and
    there are no files.
    """
    given, config = _config(model, revision, whose)
    stored = _stored(config)
    return _weights(model, revision, whose, given, stored if dtype == "auto" else dtype)


def size_of(
    model: str,
    revision: str | None,
    whose: str,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    cache_dtype: str = "auto",
    own: bool = False,
) -> Size:
    """What a model takes on a GPU: weights as its files have them, in the format it is loaded in.

    `dtype` "auto" is that of the files, or with vLLM, where it is not the files' `own`, 16 bits where they
    have 32. Raises BadInput as `weights_of`, and UnknownSize where config.json has not the fields that the
    cache depends on.
    """
    given, config = _config(model, revision, whose)
    stored = _stored(config)
    usual = "bfloat16" if stored == "float32" and not own else stored
    loaded = usual if dtype == "auto" else dtype
    weights = _weights(model, revision, whose, given, loaded, quantization)
    element = 1 if cache_dtype.startswith("fp8") else BYTES[loaded]
    window = config.get("max_position_embeddings") or config.get("n_positions")
    heads = _field(config, whose, *_HEADS)
    return Size(
        weights=weights,
        cache=_cache(config, whose) * element,
        window=None if window is None else int(window),
        heads=heads,
        pairs=int(config.get("num_key_value_heads") or heads),
        quantised=bool(config.get("quantization_config")),
    )


def main_memory() -> int:
    """Bytes of the machine's memory that are available."""
    path = Path("/proc/meminfo")
    if path.is_file():
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: str) -> tuple[str, int]:
    """Name and free bytes of a device, "auto" for CUDA where there is any."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        index = torch.device("cuda" if device == "auto" else device).index or 0
        return f"cuda:{index}", torch.cuda.mem_get_info(index)[0]
    return CPU, main_memory()


def _config(model: str, revision: str | None, whose: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's config.json, as it is and with the language model's part above the others."""
    given = model_config(model, revision, whose)
    return given, text_part(given)


def _weights(
    model: str,
    revision: str | None,
    whose: str,
    given: Mapping[str, Any],
    loaded: str,
    quantization: str | None = None,
) -> int:
    """Bytes of the weights, loaded as `loaded`."""
    if loaded not in BYTES:
        raise choose(f"dtype of {whose}:", loaded, ["auto", *BYTES])
    config = text_part(given)
    stored = _stored(config)
    weights = _files(model, revision)
    if weights is None:
        log.warning("%s: the files of %r are not here yet; its size is counted from its config", whose, model)
        weights = _counted(given, whose) * BYTES[stored]
    if config.get("quantization_config"):
        return weights  # the files are quantised already
    if quantization in _QUANTISED:
        return int(weights / BYTES[stored] * _QUANTISED[quantization])
    return weights * BYTES[loaded] // BYTES[stored]


def _stored(config: Mapping[str, Any]) -> str:
    """The number format of the files; bfloat16 where the config does not say."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return name if name in BYTES else "bfloat16"


def _cache(config: Mapping[str, Any], whose: str) -> int:
    """Numbers that a token adds to the KV cache, all layers together.

    Sliding windows are not made use of, so that it is rather too much.
    """
    layers = _field(config, whose, "num_hidden_layers", "n_layer", "n_layers")
    if config.get("kv_lora_rank"):  # multi-head latent attention (DeepSeek) keeps one vector for all heads
        return layers * (int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0))
    heads = _field(config, whose, *_HEADS)
    hidden = _field(config, whose, "hidden_size", "n_embd", "dim")
    pairs = int(config.get("num_key_value_heads") or heads)
    return 2 * layers * pairs * int(config.get("head_dim") or hidden // heads)


def _field(config: Mapping[str, Any], whose: str, *names: str) -> int:
    value = field_of(config, *names)
    if value is None:
        raise UnknownSize(
            f"{whose}: its config.json has no {' or '.join(names)}, so what it takes on a GPU is unknown; "
            f"with engine=vllm give its part of the GPU, options.gpu_memory_utilization=<fraction>"
        )
    return value


def _files(model: str, revision: str | None) -> int | None:
    """Bytes of the safetensors files of a folder or a hub id; None where they cannot be had."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if (folder / _INDEX).is_file():
            return _indexed(folder / _INDEX)
        files = [path.stat().st_size for path in folder.glob("model*.safetensors")]
        files = files or [path.stat().st_size for path in folder.glob("*.safetensors")]
        return sum(files) or None
    hub = library()
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _indexed(Path(hub.hf_hub_download(model, _INDEX, revision=revision)))
    except LocalEntryNotFoundError:
        return None
    except EntryNotFoundError:
        pass  # one file has it all
    except (HfHubHTTPError, OSError):
        return None
    try:
        siblings = hub.HfApi().model_info(model, revision=revision, files_metadata=True).siblings or []
    except (HfHubHTTPError, OSError):
        return None
    return sum(file.size or 0 for file in siblings if file.rfilename.endswith(".safetensors")) or None


def _indexed(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _counted(config: Mapping[str, Any], whose: str) -> int:
    """Parameters of the model class that a config.json names."""
    import_libraries()
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.for_model(**config))  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnknownSize(
            f"{whose}: transformers knows no model of its config.json ({error}), so what it takes on a GPU "
            f"is unknown; with engine=vllm give its part of a GPU, options.gpu_memory_utilization=<fraction>"
        ) from error
    return sum(weight.numel() for weight in model.parameters())
