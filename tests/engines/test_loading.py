"""Models that cannot be loaded: the message names the owner, the model and the mend."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import causal_model, classifier_model

from toa_exp import mends
from toa_exp.engines import checkpoints, loading
from toa_exp.engines.lanes import Lane
from toa_exp.engines.residents import at_once
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, Unavailable
from toa_exp.labels import LAB_WEIGHTS
from toa_exp.rewards import model as reward_model

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
    with pytest.raises(BadInput, match=r"'score\.weight'") as error:
        load(causal_model(tmp_path), "AutoModelForSequenceClassification")
    assert "is a LlamaForCausalLM, as its config.json says, and runs as" in str(error.value)
    assert "reward=likelihood" in str(error.value) and "reward=llm_judge" in str(error.value)
    assert "again" not in str(error.value)


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


def test_devices_that_are_not_there_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.device_of("auto").type == "cpu"
    with pytest.raises(BadInput, match=r"'cuda:3'.*sees 0 CUDA devices.*device=cpu"):
        loading.device_of("cuda:3")
    folder = str(causal_model(tmp_path))
    with pytest.raises(BadInput, match=r"Set engine\.device=cpu"):
        Lane(Agent("ash", folder, None, {}), "cuda", "auto")
    with pytest.raises(BadInput, match=r"Set engine\.device=cpu"):
        at_once([], "cuda")
    with pytest.raises(BadInput, match=r"Set reward\.device=cpu"):
        reward_model.load(reward_model.Source(folder, device="cuda"), "AutoModelForCausalLM")


def test_the_number_format_is_float32_on_a_cpu(tmp_path):
    folder = str(causal_model(tmp_path))
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        family, cpu = "AutoModelForCausalLM", torch.device("cpu")
        assert loading.load_model(family, folder, None, cpu, dtype, "reward").dtype == expected


@pytest.mark.parametrize(
    ("whose", "mend", "not_its_own"),
    [("agent 'ash'", "engine.residents=1", "reward."), ("reward", "reward.dtype=bfloat16", "engine")],
)
def test_a_model_that_memory_is_too_small_for_is_told_by_its_owner(
    tmp_path, monkeypatch, whose, mend, not_its_own
):
    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    folder = str(classifier_model(tmp_path))
    monkeypatch.setattr(torch.nn.Module, "to", full)
    family, cpu = "AutoModelForSequenceClassification", torch.device("cpu")
    with pytest.raises(Unavailable, match=f"^{whose}: .* does not fit on cpu") as error:
        loading.load_model(family, folder, None, cpu, "auto", whose)
    said = str(error.value).replace(folder, "")
    assert mend in said and not_its_own not in said


def test_what_other_threads_compute_in_is_left_alone(tmp_path, monkeypatch):
    """While transformers loads a model, torch's default format is the model's, in every thread."""
    formats, usual = [], torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: (formats.append(dtype), usual(dtype)))
    folder, cpu = str(classifier_model(tmp_path)), torch.device("cpu")
    model = loading.load_model("AutoModelForSequenceClassification", folder, None, cpu, "float64", "reward")
    assert model.dtype == torch.float64
    assert formats and set(formats) == {torch.float32}


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
from toa_exp.engines import checkpoints, loading

class HalfMade:
    # Lets the second thread come while the first is in the middle of importing transformers.
    def find_spec(self, name, path=None, target=None):
        if name.startswith("transformers.") and not half_made.is_set():
            half_made.set()
            second.join(1.0)

def read():
    found.append(loading.load_tokenizer(sys.argv[1], None, "reward"))

def read_when_half_made():
    half_made.wait()
    read()

found, half_made = [], threading.Event()
first, second = threading.Thread(target=read), threading.Thread(target=read_when_half_made)
sys.meta_path.insert(0, HalfMade())
first.start(), second.start(), first.join(), second.join()
assert len(found) == 2
"""


def test_libraries_may_first_be_used_by_several_threads_at_once(tmp_path: Path) -> None:
    """transformers imports its modules late, and half of one may be seen by another thread."""
    folder = causal_model(tmp_path)
    used = subprocess.run(
        [sys.executable, "-c", _FIRST_USES, str(folder)], capture_output=True, text=True, check=False
    )
    assert used.returncode == 0, used.stderr


RUN_TWO_SIZES = """
import torch
torch.set_num_threads(3)  # as OMP_NUM_THREADS=3, which a test cannot set for itself
from toa_exp.engines import checkpoints, loading
loading.import_libraries()
small, large = torch.nn.Linear(1000, 1000), torch.nn.Linear(2000, 1000)
for model in (small, large, small, large):
    torch.set_num_threads(loading.threads_for(model))
    print(torch.get_num_threads())
"""


def test_small_models_take_one_thread_and_the_others_as_many_as_torch_was_given():
    result = subprocess.run([sys.executable, "-c", RUN_TWO_SIZES], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "3", "1", "3"]


def renamed(folder: Path, kind: str) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [kind]}))
    return folder


@pytest.mark.parametrize(
    ("kind", "family", "choice"),
    [
        ("LlamaForTokenClassification", "AutoModelForSequenceClassification", "reward=process"),
        ("LlamaForSequenceClassification", "AutoModelForTokenClassification", "reward=classifier"),
        ("LlamaForSequenceClassification", "AutoModelForCausalLM", "reward=classifier"),
    ],
)
def test_a_classifier_of_another_kind_is_refused_with_what_runs_it(tmp_path, kind, family, choice):
    folder = renamed(classifier_model(tmp_path), kind)
    with pytest.raises(BadInput, match=rf"agent 'ash'.*{kind}.*{choice}"):
        load(folder, family)


def test_a_classifiers_head_that_nobody_takes_is_told(tmp_path):
    """Its config.json has no word of what it is for."""
    folder = causal_model(tmp_path)
    tensors = load_file(folder / "model.safetensors") | {"score.weight": torch.ones(1, 32)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"'score\.weight'.*reward=classifier"):
        load(folder)


def test_a_head_of_a_language_model_may_stay_in_a_classifiers_file(tmp_path):
    folder = renamed(classifier_model(tmp_path), "LlamaForCausalLM")
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, folder / "model.safetensors", {"format": "pt"})
    place = torch.device("cpu"), "auto", "reward"
    model = loading.load_model("AutoModelForSequenceClassification", str(folder), None, *place)
    assert torch.equal(model.score.weight, tensors["score.weight"])


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path):
    folder = causal_model(tmp_path / "model", vocab_size=80)
    tokenizer = loading.load_tokenizer(str(folder), None, "agent 'ash'")
    model = loading.load_model(
        "AutoModelForCausalLM", str(folder), None, torch.device("cpu"), "auto", "agent 'ash'"
    )
    with pytest.raises(
        BadInput, match=rf"agent 'ash'.*{tokenizer.vocab_size} tokens, and the model knows 80"
    ):
        checkpoints.check_vocabulary(tokenizer, model, str(folder), "agent 'ash'")
    checkpoints.check_tokens([79, 3], checkpoints.embeddings_of(model), str(folder), "agent 'ash'")
    with pytest.raises(BadInput, match="gives token 80"):
        checkpoints.check_tokens([80, 3], checkpoints.embeddings_of(model), str(folder), "agent 'ash'")


def test_what_to_do_depends_on_where_a_model_is_from(tmp_path):
    package = LAB_WEIGHTS / "math" / "ada"
    assert "reinstall toa-exp" in mends.damaged(str(package))
    shutil.copytree(package, tmp_path / "math" / "ada")
    assert "toa-exp lab train" in mends.damaged(str(tmp_path / "math" / "ada"))
    assert "copy the folder again" in mends.damaged(str(tmp_path))
    assert "hf download org/model" in mends.damaged("org/model")


def test_the_labs_rewards_of_a_task_are_named_where_one_is_missing():
    with pytest.raises(BadInput, match=r"weak.*reward=lab_likelihood, reward=lab_judge"):
        loading.check_model(str(LAB_WEIGHTS / "translation" / "weak"), "reward")
    with pytest.raises(BadInput, match=r"are reward=lab_process;"):
        loading.check_model(str(LAB_WEIGHTS / "instructions" / "teacher"), "reward")
