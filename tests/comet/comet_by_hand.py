"""COMET's scores computed step by step from the tensors of a checkpoint, one sentence at a time.

Sources: Conneau et al. 2020 (XLM-R), Goyal et al. 2021 (XL), Rei et al. 2020 (COMET), Rei et al. 2022
(CometKiwi), Guerreiro et al. 2024 (XCOMET).
"""

import math
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from torch.nn.functional import gelu, layer_norm

HEADS = 2
POSITIONS = 64  # of the tiny encoders
START, END = 0, 2
MINOR, MAJOR, CRITICAL = 1, 5, 10


class ByHand:
    """A checkpoint; `score` takes a row of src, mt and ref."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        saved = torch.load(folder / "checkpoints" / "model.ckpt", weights_only=True)
        self.weights = {name: tensor.double() for name, tensor in saved["state_dict"].items()}
        self.hparams = yaml.safe_load((folder / "hparams.yaml").read_text())
        self.tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
        self.large = self.hparams["encoder_model"].endswith("XL")
        self.layers = 1 + max(int(n.split(".")[4]) for n in self.weights if ".encoder.layer." in n)

    def score(self, row: dict[str, str]) -> float:
        kind = self.hparams["class_identifier"]
        return float({"regression_metric": self._regression, "unified_metric": self._kiwi,
                      "xcomet_metric": self._xcomet}[kind](row))  # fmt: skip

    def _regression(self, row: dict[str, str]) -> torch.Tensor:
        src, mt, ref = (self._mixed(self._ids(row[name]))[0].mean(0) for name in ("src", "mt", "ref"))
        return self._estimate(torch.cat([mt, ref, mt * ref, (mt - ref).abs(), mt * src, (mt - src).abs()]))

    def _kiwi(self, row: dict[str, str]) -> torch.Tensor:
        return self._estimate(self._mixed(self._joined(row["mt"], row["src"]))[0][0])

    def _xcomet(self, row: dict[str, str]) -> torch.Tensor:
        regression, tags = torch.zeros(()).double(), 0.0
        length = len(self._ids(row["mt"]))
        inputs = [("mt", "src"), ("mt", "ref"), ("mt", "src", "ref")]
        if "ref" not in row:
            inputs, shares, spans = inputs[:1], [0.78], [1.0]
        else:
            shares, spans = [0.12, 0.33, 0.33], [0.1667, 0.3333, 0.5]
        for names, share, weight in zip(inputs, shares, spans, strict=True):
            mixed, layers = self._mixed(self._joined(*(row[name] for name in names)))
            regression = regression + share * self._estimate(mixed[0]).clamp(max=1.0)
            logits = self._linear(layers[self.hparams["word_layer"]], "hidden2tag")
            tags = tags + weight * torch.softmax(logits, -1)[:length]
        return regression + 0.22 * self._quality(tags.argmax(-1).tolist())

    @staticmethod
    def _quality(tags: list[int]) -> float:
        """1 less 1/25 of the errors' weights; a span has the severity it begins with, and must end."""
        weights, begun = 0, 0
        for tag in tags:
            if tag and not begun:
                begun = tag
            elif not tag and begun:
                weights += (MINOR, MAJOR, CRITICAL)[begun - 1]
                begun = 0
        return (25 - min(25, weights)) / 25

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [START, *ids[: POSITIONS - 4], END]

    def _joined(self, *texts: str) -> list[int]:
        """<s> first </s></s> second </s>, and so on, up to the window."""
        parts = [self._ids(text)[1:-1] for text in texts]
        joined = [START, *parts[0], END]
        for part in parts[1:]:
            joined += [END, *part, END]
        return joined[:POSITIONS]

    def _mixed(self, ids: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The weighted sum of all layers, and the layers: [tokens, hidden]."""
        layers = self._encode(ids)
        names = [f"layerwise_attention.scalar_parameters.{i}" for i in range(len(layers))]
        scores = torch.cat([self.weights[name] for name in names])
        sparse = self.hparams["layer_transformation"] == "sparsemax"
        weights = sparsemax(scores) if sparse else torch.softmax(scores, 0)
        mixed = sum(w * layer for w, layer in zip(weights, layers, strict=True))
        return self.weights["layerwise_attention.gamma"] * mixed, layers

    def _encode(self, ids: list[int]) -> list[torch.Tensor]:
        table = "encoder.model.embeddings"
        hidden = self.weights[f"{table}.word_embeddings.weight"][ids]
        hidden = hidden + self.weights[f"{table}.position_embeddings.weight"][2 : 2 + len(ids)]
        hidden = hidden + self.weights[f"{table}.token_type_embeddings.weight"][0]
        if not self.large:
            hidden = self._norm(hidden, f"{table}.LayerNorm")
        found = [hidden]
        for number in range(self.layers):
            hidden = self._layer(hidden, f"encoder.model.encoder.layer.{number}")
            found.append(hidden)
        if self.large:
            found[-1] = self._norm(hidden, "encoder.model.encoder.LayerNorm")
        return found

    def _layer(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        """Normed before attention and feed-forward in XL, behind them in XLM-R."""
        read = self._norm(hidden, f"{name}.attention.self_attn_layer_norm") if self.large else hidden
        query, key, value = (
            self._linear(read, f"{name}.attention.self.{part}").unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        attention = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1)
        context = (attention @ value).transpose(0, 1).flatten(1)
        hidden = hidden + self._linear(context, f"{name}.attention.output.dense")
        if not self.large:
            hidden = self._norm(hidden, f"{name}.attention.output.LayerNorm")
        read = self._norm(hidden, f"{name}.LayerNorm") if self.large else hidden
        inner = gelu(self._linear(read, f"{name}.intermediate.dense"))
        hidden = hidden + self._linear(inner, f"{name}.output.dense")
        return hidden if self.large else self._norm(hidden, f"{name}.output.LayerNorm")

    def _estimate(self, features: torch.Tensor) -> torch.Tensor:
        for number in (0, 3):
            features = torch.tanh(self._linear(features, f"estimator.ff.{number}"))
        return self._linear(features, "estimator.ff.6")[0]

    def _linear(self, given: torch.Tensor, name: str) -> torch.Tensor:
        return given @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, given: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(given, weight.shape, weight, bias, 1e-12 if not self.large else 1e-5)


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """The projection onto the simplex (Martins and Astudillo 2016)."""
    ordered, _ = scores.sort(descending=True)
    sums = ordered.cumsum(0)
    support = sum(1 for k in range(len(scores)) if 1 + (k + 1) * ordered[k] > sums[k])
    return (scores - (sums[support - 1] - 1) / support).clamp(min=0)
