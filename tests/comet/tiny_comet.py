"""Makes tiny COMET checkpoints, in the layout of the published ones; run by the Python of `make comet-env`.

python tiny_comet.py make <folder>              encoders and checkpoints, random but for the seed
python tiny_comet.py predict <folder> <kind>    rows on standard input, COMET's own scores as JSON
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaTokenizerFast, XLMRobertaXLConfig

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüß0123456789.,:?!-"
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
COMMON = {
    "nr_frozen_epochs": 0.3,
    "keep_embeddings_frozen": True,
    "optimizer": "AdamW",
    "encoder_learning_rate": 1.0e-06,
    "learning_rate": 1.5e-05,
    "layerwise_decay": 0.95,
    "layer_norm": False,
    "loss": "mse",
    "dropout": 0.1,
    "batch_size": 4,
    "train_data": ["data/1720-da.csv"],
    "validation_data": ["data/wmt-ende-newstest2021.csv"],
    "activations": "Tanh",
    "final_activation": None,
}
# As wmt22-comet-da, wmt22-cometkiwi-da and XCOMET-XL have them.
KINDS = {
    "regression_metric": {
        "encoder_model": "XLM-RoBERTa",
        "pretrained_model": "xlm-roberta-large",
        "pool": "avg",
        "layer": "mix",
        "layer_transformation": "sparsemax",
        "hidden_sizes": [20, 12],
    },
    "unified_metric": {
        "encoder_model": "XLM-RoBERTa",
        "pretrained_model": "microsoft/infoxlm-large",
        "sent_layer": "mix",
        "layer_transformation": "sparsemax_patch",
        "hidden_sizes": [20, 12],
        "input_segments": ["mt", "src"],
        "word_level_training": False,
        "word_layer": 3,
        "loss_lambda": 0.65,
    },
    "xcomet_metric": {
        "encoder_model": "XLM-RoBERTa-XL",
        "pretrained_model": "facebook/xlm-roberta-xl",
        "sent_layer": "mix",
        "layer_transformation": "sparsemax_patch",
        "hidden_sizes": [20, 12],
        "word_level_training": True,
        "word_layer": 2,
        "error_labels": ["minor", "major", "critical"],
        "loss_lambda": 0.055,
        "cross_entropy_weights": [0.08, 0.486, 0.505, 0.533],
    },
}


def make(folder: Path) -> None:
    from comet.models import str2model

    encoders = {"XLM-RoBERTa": XLMRobertaConfig, "XLM-RoBERTa-XL": XLMRobertaXLConfig}
    for name, config in encoders.items():
        place = folder / name
        tokenizer().save_pretrained(place)
        config(vocab_size=len(SPECIAL) + len(LETTERS) + 1, **SHAPE).save_pretrained(place)
    for number, (kind, own) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        hparams = {**COMMON, **own}
        local = {**hparams, "pretrained_model": str(folder / own["encoder_model"])}
        model = str2model[kind](**local, load_pretrained_weights=False, local_files_only=True)
        with torch.no_grad():
            for weight in model.layerwise_attention.scalar_parameters:
                weight.normal_()
            model.layerwise_attention.gamma.fill_(1.3)
            for name, weight in model.named_parameters():
                if (
                    name.startswith(("estimator", "hidden2tag"))
                    or "LayerNorm" in name
                    or "layer_norm" in name
                ):
                    weight.add_(0.3 * torch.randn_like(weight))
            if kind == "xcomet_metric":  # tags of all kinds
                model.hidden2tag.weight.mul_(3.0)
                letters = torch.randint(len(SPECIAL), len(SPECIAL) + len(LETTERS), (8, 40))
                hidden = model.eval().encoder(letters, torch.ones_like(letters))["all_layers"][
                    own["word_layer"]
                ]
                model.hidden2tag.bias.copy_(-(hidden @ model.hidden2tag.weight.T).mean((0, 1)))
        save(folder / kind, kind, hparams, model.state_dict())


def save(folder: Path, kind: str, hparams: dict, weights: dict) -> None:
    """As COMET and Lightning leave it behind; old transformers had the position ids among the weights."""
    weights = {**weights, "encoder.model.embeddings.position_ids": torch.arange(66)[None]}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hparams.yaml").write_text(yaml.safe_dump({**hparams, "class_identifier": kind}))
    saved = {
        "epoch": 1,
        "global_step": 1000,
        "pytorch-lightning_version": "1.8.2",
        "state_dict": weights,
        "loops": {},
        "hparams_name": "kwargs",
        "hyper_parameters": {**hparams, "class_identifier": kind},
    }
    torch.save(saved, folder / "checkpoints" / "model.ckpt")


def tokenizer() -> XLMRobertaTokenizerFast:
    """XLM-R's, with letters for pieces."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(letter, -3.0) for letter in LETTERS]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return XLMRobertaTokenizerFast(tokenizer_object=made)


def predict(folder: Path, kind: str) -> None:
    """What COMET's own loader and `predict` give; its loader takes the encoder that the checkpoint names."""
    from comet import load_from_checkpoint

    rows = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as place:
        other = Path(place) / kind
        shutil.copytree(folder / kind, other)
        path = other / "checkpoints" / "model.ckpt"
        saved = torch.load(path, weights_only=True)
        saved["hyper_parameters"]["pretrained_model"] = str(folder / KINDS[kind]["encoder_model"])
        torch.save(saved, path)
        model = load_from_checkpoint(str(path), local_files_only=True)
    output = model.predict(rows, batch_size=3, gpus=0, progress_bar=False)
    sys.stderr.write("SCORES " + json.dumps(output["scores"]) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        predict(Path(sys.argv[2]), sys.argv[3])
