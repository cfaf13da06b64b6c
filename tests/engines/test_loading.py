"""Models that cannot be loaded: the message names the owner, the model and the mend."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import causal_model, classifier_model

from toa_exp.engines import loading
from toa_exp.errors import BadInput

CHAT = [{"role": "user", "content": "Hello"}]


def load(folder: Path, family: str = "AutoModelForCausalLM") -> None:
    loading.load_tokenizer(str(folder), None, "agent 'ash'")
    loading.load_model(family, str(folder), None, torch.device("cpu"), "auto", "agent 'ash'")


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def unknown_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "incomplete metadata"),
        (lose_a_tensor, "1 weights .* missing, e.g. 'model.layers.1.mlp.up_proj.weight'"),
        (other_shape, r"'model.layers.0.mlp.down_proj.weight' with \[32, 64\] instead of \[32, 48\]"),
        (unknown_kind, "lama"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_damaged_folders_are_told(tmp_path, damage, message):
    folder = causal_model(tmp_path)
    load(folder)
    damage(folder)
    with pytest.raises(BadInput, match=message) as error:
        load(folder)
    assert "agent 'ash'" in str(error.value) and str(folder) in str(error.value)
    assert "again" in str(error.value)


def test_weights_that_may_hold_code_are_not_read(tmp_path):
    folder = causal_model(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="safetensors"):
        load(folder)


def test_a_language_model_is_no_classifier(tmp_path):
    with pytest.raises(BadInput, match=r"'score\.weight'"):
        load(causal_model(tmp_path), "AutoModelForSequenceClassification")


def test_a_tokenizer_without_chat_template_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"agent 'ash'.*no chat template.*chat_template\.jinja"):
        load(causal_model(tmp_path, chat=False))


def test_messages_that_the_template_refuses_are_told(tmp_path):
    folder = causal_model(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")
    tokenizer = loading.load_tokenizer(str(folder), None, "agent 'ash'")
    with pytest.raises(BadInput, match=r"agent 'ash'.*refuses messages of user \(no users here\)"):
        loading.token_ids(tokenizer, CHAT, "agent 'ash'", reply=True)


def test_a_template_that_writes_nothing_is_told(tmp_path):
    folder = causal_model(tmp_path)
    (folder / "chat_template.jinja").write_text("{# nothing #}")
    tokenizer = loading.load_tokenizer(str(folder), None, "agent 'ash'")
    with pytest.raises(BadInput, match="makes no tokens"):
        loading.token_ids(tokenizer, CHAT, "agent 'ash'", reply=True)


def test_devices_that_are_not_there_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.device_of("auto").type == "cpu"
    with pytest.raises(BadInput, match=r"'cuda:3'.*sees 0 CUDA devices.*device=cpu"):
        loading.device_of("cuda:3")


def test_the_number_format_is_float32_on_a_cpu(tmp_path):
    folder = str(causal_model(tmp_path))
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        family, cpu = "AutoModelForCausalLM", torch.device("cpu")
        assert loading.load_model(family, folder, None, cpu, dtype, "reward").dtype == expected


def test_models_may_be_loaded_by_several_threads_at_once(tmp_path: Path) -> None:
    """An engine and a reward load theirs in threads of their own."""
    causal = causal_model(tmp_path / "causal", tie_word_embeddings=True)
    classifier = classifier_model(tmp_path / "classifier")
    kinds = [("AutoModelForCausalLM", causal), ("AutoModelForSequenceClassification", classifier)]
    with ThreadPoolExecutor(8) as pool:
        loads = [
            pool.submit(loading.load_model, family, str(folder), None, torch.device("cpu"), "auto", "model")
            for family, folder in kinds * 12
        ]
    for load in loads:
        assert all(bool(p.isfinite().all()) for p in load.result().parameters())


_FIRST_USES = """
import sys, threading
sys.setswitchinterval(1e-6)
from toa_exp.engines import loading
found = []
def read():
    found.append(loading.load_tokenizer(sys.argv[1], None, "reward"))
def decode():
    loading.import_libraries()
    from toa_exp.engines.decoding import Decoder
    found.append(Decoder)
threads = [threading.Thread(target=work) for work in (read, decode)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 2
"""


def test_libraries_may_first_be_used_by_several_threads_at_once(tmp_path: Path) -> None:
    """transformers imports its modules late, and half of one may be seen by another thread."""
    folder = causal_model(tmp_path)
    used = subprocess.run(
        [sys.executable, "-c", _FIRST_USES, str(folder)], capture_output=True, text=True, check=False
    )
    assert used.returncode == 0, used.stderr
