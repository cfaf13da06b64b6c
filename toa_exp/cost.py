"""What a sample costs in floating-point operations, from the architecture of the model.

The forward pass of a transformer over T = prompt + completion tokens takes, with two operations a
multiplication and addition,

    2 x (active weight-matrix parameters + output head) x T
    + 4 x layers x heads x head size x (sum over tokens of the context each attends to).

Embedding look-ups, norms and biases are left out (below 0.1 %). Grouped-query attention shrinks the
key and value projections but not the attention itself; of a mixture of experts the router, the
shared experts and the experts chosen per token count. Every token is charged alike, whether it was
read in the prefill or written in decoding, and no credit is given for a prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from toa_exp.core import Usage
from toa_exp.errors import BadInput, choose

# The feed-forward block of these families is gated: three matrices instead of two.
_GATED = frozenset(
    [
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi3",
        "olmo",
        "olmo2",
        "smollm3",
        "granite",
        "cohere",
        "cohere2",
        "stablelm",
        "internlm2",
        "yi",
        "modernbert",
    ]
)
_PLAIN = frozenset(
    [
        "gpt2",
        "gpt_neox",
        "opt",
        "phi",
        "bert",
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "deberta-v2",
        "distilbert",
        "electra",
    ]
)
_BIDIRECTIONAL = frozenset(
    ["bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "deberta-v2", "distilbert", "electra", "modernbert"]
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a model, as far as its cost depends on it.

    `matrices` counts the active parameters of all weight matrices between embedding and output
    head, `head` those of the output head, `embedding` those of input embeddings that are not tied
    to it. `attention` is layers x heads x head size. `window` is the context that a layer attends
    to, one entry a kind of layer with its share of the layers (None: all of it).
    """

    matrices: int
    head: int
    embedding: int
    layers: int
    hidden: int
    attention: int
    windows: tuple[tuple[int | None, float], ...] = ((None, 1.0),)
    causal: bool = True

    @property
    def active(self) -> int:
        """Active parameters, embeddings and output head included."""
        return self.matrices + self.head + self.embedding

    def flops(self, prompt_tokens: int, completion_tokens: int) -> float:
        """FLOPs of reading `prompt_tokens` and writing `completion_tokens`."""
        tokens = prompt_tokens + completion_tokens
        context = 0.0
        for window, share in self.windows:
            context += share * self._context(tokens, window)
        return 2.0 * (self.matrices + self.head) * tokens + 4.0 * self.attention * context

    def paper_flops(self, prompt_tokens: int, completion_tokens: int) -> float:
        """FLOPs as the paper counts them: tokens x FLOPs per token.

        Its helper is lost; this is the common form that fits its tables, 2 x active parameters plus
        2 x layers x context x width (Kaplan et al. 2020, table 1).
        """
        tokens = prompt_tokens + completion_tokens
        return tokens * (2.0 * self.active + 2.0 * self.layers * tokens * self.hidden)

    def _context(self, tokens: int, window: int | None) -> float:
        """Summed over the tokens: how many positions each attends to, itself included."""
        if not self.causal:
            return float(tokens * min(tokens, window or tokens))
        full = min(tokens, window or tokens)
        return full * (full + 1) / 2 + (tokens - full) * full


def architecture(config: Mapping[str, Any], *, output_head: bool = True) -> Architecture:
    """The architecture that a Hugging Face `config.json` describes.

    `output_head` is False for a model that scores instead of writing. Families without a formula
    here are counted (`toa_exp.counting`). Raises BadInput where transformers does not know the
    family either or a field is missing or no number, since a guess would be a wrong cost.
    """
    try:
        return _architecture(config, output_head)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadInput(
            f"FLOPs cannot be counted from this configuration ({error}); give the fields of a config.json as "
            f"`architecture`"
        ) from error


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the fields of its language model above the others, where it has them apart."""
    part = config.get("text_config")
    if part is not None and not isinstance(part, Mapping):
        raise BadInput(f"text_config={part!r} of a config.json holds no fields; give them, or leave it out")
    return {**config, **(part or {})}


def _architecture(config: Mapping[str, Any], output_head: bool) -> Architecture:
    given, config = config, text_part(config)
    family = config.get("model_type")
    if family not in _GATED | _PLAIN:
        from toa_exp.counting import counted  # needs transformers, which formulas do not

        return counted(given, output_head=output_head)
    field = _reader(config, str(family))
    hidden = field("hidden_size", "n_embd", "dim")
    layers = field("num_hidden_layers", "n_layer", "n_layers")
    heads = field("num_attention_heads", "n_head", "n_heads")
    key_value_heads = config.get("num_key_value_heads") or heads
    head_size = int(config.get("head_dim") or hidden // heads)
    projections = 2 * hidden * heads * head_size + 2 * hidden * key_value_heads * head_size
    blocks: int = sum(_feed_forward(config, field, hidden, layer) for layer in range(layers))
    table = hidden * field("vocab_size")
    tied = config.get("tie_word_embeddings", family in {"gpt2", "gemma", "gemma2", "gemma3_text"})
    return Architecture(
        matrices=layers * projections + blocks,
        head=table if output_head else 0,
        embedding=0 if output_head and tied else table,
        layers=layers,
        hidden=hidden,
        attention=layers * heads * head_size,
        windows=_windows(config, layers),
        causal=family not in _BIDIRECTIONAL,
    )


def _reader(config: Mapping[str, Any], family: str) -> Callable[..., int]:
    def field(*names: str) -> int:
        value = field_of(config, *names)
        if value is None:
            raise BadInput(
                f"the {family} configuration has no {' or '.join(names)}, so its FLOPs are unknown; "
                f"give the agent's `architecture` with that field"
            )
        return value

    return field


def field_of(config: Mapping[str, Any], *names: str) -> int | None:
    """A number of a config.json, which families call by one of `names`; None where it has none of them."""
    return next((int(config[name]) for name in names if config.get(name) is not None), None)


def _feed_forward(config: Mapping[str, Any], field: Callable[..., int], hidden: int, layer: int) -> int:
    """Active parameters of one layer's feed-forward block."""
    matrices = 3 if config["model_type"] in _GATED else 2
    experts = config.get("num_local_experts") or config.get("num_experts")
    step = config.get("decoder_sparse_step") or 1
    if not experts or layer in (config.get("mlp_only_layers") or ()) or (layer + 1) % step:
        if config["model_type"] in _PLAIN and config.get("n_embd") and not config.get("n_inner"):
            return matrices * hidden * 4 * hidden
        return matrices * hidden * field("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")
    width = field("moe_intermediate_size", "intermediate_size")
    shared = int(config.get("shared_expert_intermediate_size") or 0)
    router = hidden * int(experts)
    return router + matrices * hidden * (field("num_experts_per_tok") * width + shared)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[tuple[int | None, float], ...]:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return ((None, 1.0),)
    kinds = config.get("layer_types")
    if not kinds:
        return ((window, 1.0),)
    share = sum(kind == "sliding_attention" for kind in kinds) / layers
    return ((window, share), (None, 1.0 - share))


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars of one sample."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(slots=True)
class Cost:
    """What one sample or a whole trajectory cost; `usd` is None where an agent has no price."""

    samples: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0
    reward_flops: float = 0.0
    usd: float | None = 0.0
    seconds: float = 0.0

    def add(self, other: Cost) -> None:
        """Add another cost to this one."""
        self.samples += other.samples
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.flops += other.flops
        self.reward_flops += other.reward_flops
        self.usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        self.seconds += other.seconds

    def record(self) -> dict[str, float | None]:
        """The cost by name, as it is written to trajectories.jsonl."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def spent(self, unit: str) -> float:
        """The cost in a budget's unit: samples, tokens, flops, usd or seconds."""
        value = getattr(self, unit)
        if value is None:
            raise BadInput(
                "budget.unit=usd needs a price of every agent; set "
                "'+ensemble.agents.<agent>.price={prompt: <USD per million tokens>, completion: ...}'"
            )
        return float(value)


class Accountant:
    """Charges samples, by `rule` "model" (the module's formula) or "paper" (`paper_flops`).

    `shapes` and `prices` are by agent; `reward` is the reward model's architecture, None where no
    model scores. The reward's FLOPs are kept apart and always follow the module's formula.
    """

    def __init__(
        self,
        shapes: Mapping[str, Architecture],
        prices: Mapping[str, Price | None],
        reward: Architecture | None,
        rule: str = "model",
    ) -> None:
        if rule not in {"model", "paper"}:
            raise choose("flops", rule, ["model", "paper"])
        self._flops = {
            name: shape.paper_flops if rule == "paper" else shape.flops for name, shape in shapes.items()
        }
        self._prices = prices
        self._reward = reward

    def __call__(self, agent: str, usage: Usage, seconds: float, scored_tokens: int) -> Cost:
        """The cost of one sample; `scored_tokens` is what the reward model read, 0 if nothing."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        price = self._prices[agent]
        return Cost(
            samples=1,
            prompt_tokens=prompt,
            completion_tokens=completion,
            flops=self._flops[agent](prompt, completion),
            reward_flops=self._reward.flops(scored_tokens, 0) if self._reward else 0.0,
            usd=None if price is None else price.usd(prompt, completion),
            seconds=seconds,
        )
