"""Published reward models as tiny checkpoints, and their computation by hand: what tests of them share."""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import hydra
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CHARACTERS, SPECIAL, byte_tokenizer, character_tokenizer, published, tiny_config
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.build import build
from toa_exp.core import Problem
from toa_exp.draws import Score

PROBLEM = Problem("p", "What is 12 + 30?")
LETTERS = CHARACTERS.replace("\n", "")
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
LLAMA_TEMPLATE = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


SYSTEM = {
    "role": "system",
    "content": "Please reason step by step, and put your final answer within \\boxed{}.",
}


def made_up(number: int, separator: str = "\n\n") -> str:
    """A text of one to five paragraphs."""
    rng = Random(number)
    steps = ["".join(rng.choices(LETTERS.strip(), k=rng.randint(2, 12))) for _ in range(1 + number % 5)]
    return separator.join(step.strip() + "." for step in steps)


TEXTS = [made_up(number) for number in range(12)]


def llama_tokenizer(**changes: object):
    return character_tokenizer(special=[*SPECIAL, *LLAMA], template=LLAMA_TEMPLATE, **changes)


def qwen_tokenizer(*, chat: bool = True, **changes: object):
    return byte_tokenizer(QWEN, QWEN_TEMPLATE if chat else None, **changes)


def qwen(seed: int = 0, **changes: object) -> Qwen2Model:
    torch.manual_seed(seed)
    fields = tiny_config(vocab_size=len(QWEN) + 256, max_position_embeddings=1024).to_diff_dict()
    fields.pop("model_type")
    return Qwen2Model(Qwen2Config(**{**fields, **changes})).eval()


SIZE = len(SPECIAL) + len(LLAMA) + len(CHARACTERS)


def reward_of(choice: str, folder: Path, **changes: object):
    """The reward that conf/reward/<choice>.yaml makes of a folder."""
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [f"reward={choice}"])
    values = {"model": str(folder), "revision": None, "device": "cpu", "dtype": "float32", **changes}
    for name, value in values.items():
        config.reward[name] = value
    return build(config.reward, "reward", task=None)


def score(make: Callable[[], object], texts: Sequence[str], problem: Problem = PROBLEM) -> list[Score]:
    async def run() -> list[Score]:
        reward = make()
        try:
            return await asyncio.gather(*(reward.score(problem, text) for text in texts))
        finally:
            await reward.close()

    return asyncio.run(run())


def check(choice: str, folder: Path, expected: Sequence[float], **changes: object) -> None:
    """Batches of any size, in any order, give the expected scores."""
    assert max(expected) - min(expected) > 1e-3  # else there is nothing to tell apart
    for size in (1, 5, 16):
        found = score(lambda size=size: reward_of(choice, folder, max_batch=size, **changes), TEXTS)
        assert [each.reward for each in found] == pytest.approx(expected, rel=2e-5, abs=2e-5)
    backwards = score(lambda: reward_of(choice, folder, max_batch=3, **changes), TEXTS[::-1])
    assert [each.reward for each in backwards] == pytest.approx(expected[::-1], rel=2e-5, abs=2e-5)


def states(backbone: PreTrainedModel, ids: Sequence[int]) -> list[list[float]]:
    """The last hidden states of one sequence."""
    with torch.inference_mode():
        return backbone(input_ids=torch.tensor([list(ids)]))[0][0].double().tolist()


def linear(weight: torch.Tensor, bias: torch.Tensor | None, inputs: Sequence[float]) -> list[float]:
    """A linear layer in plain loops."""
    rows = weight.double().tolist()
    shifts = [0.0] * len(rows) if bias is None else bias.double().tolist()
    return [
        sum(w * x for w, x in zip(row, inputs, strict=True)) + b for row, b in zip(rows, shifts, strict=True)
    ]


def softmax(values: Sequence[float]) -> list[float]:
    parts = [math.exp(value - max(values)) for value in values]
    return [part / sum(parts) for part in parts]


def logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def perceptron(folder: Path, architecture: str, labels: int, **changes: object) -> Path:
    """With the names and fields of Qwen/Qwen2.5-Math-RM-72B and -PRM-7B, which leave num_labels out."""
    backbone = qwen()
    size = backbone.config.hidden_size
    tensors = {
        "score.0.weight": torch.randn(size, size),
        "score.0.bias": torch.randn(size),
        "score.2.weight": torch.randn(labels, size),
        "score.2.bias": torch.randn(labels),
        "lm_head.weight": torch.randn(3, 3),  # left over from the language model: nobody reads it
    }
    fields = {
        "architectures": [architecture],
        "auto_map": {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": f"modeling_qwen2_rm.{architecture}",
        },
    }
    return published(folder, backbone, tensors, fields, qwen_tokenizer(**changes))


def perceptron_head(folder: Path, state: Sequence[float]) -> list[float]:
    tensors = load_file(folder / "model.safetensors")
    hidden = linear(tensors["score.0.weight"], tensors["score.0.bias"], state)
    return linear(tensors["score.2.weight"], tensors["score.2.bias"], [max(0.0, h) for h in hidden])
