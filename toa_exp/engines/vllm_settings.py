"""What an agent's vLLM engine is started with: checked, and turned into vLLM's arguments."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toa_exp.build import call, shown
from toa_exp.engines import loading
from toa_exp.engines.seats import GIB, Model
from toa_exp.engines.sizes import Size, UnknownSize, size_of
from toa_exp.ensemble import Agent
from toa_exp.errors import BadInput, choose

log = logging.getLogger(__name__)

# Numbers that vLLM's SamplingParams take beside our own three; sampling.extra_body may have them, and an
# endpoint of vLLM takes them from there too.
EXTRA_SAMPLING = ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
# Arguments that this engine fills itself, with the setting to use instead.
_OWN = {
    "model": "the agent's model",
    "tokenizer": "a chat template and tokenizer in the model's folder",
    "revision": "the agent's revision",
    "tokenizer_revision": "the agent's revision",
    "dtype": "options.dtype",
    "quantization": "options.quantization",
    "max_model_len": "options.max_model_len",
    "tensor_parallel_size": "options.tensor_parallel_size",
    "data_parallel_size": "runner=ray runner.agent.num_gpus=1 'runner.agents={<agent>: {replicas: 2}}'",
    "gpu_memory_utilization": "options.gpu_memory_utilization",
    "max_num_seqs": "options.max_num_seqs",
    "enable_prefix_caching": "options.prefix_caching",
    "device_ids": "options.gpus",
    "enable_sleep_mode": "engine.residents",
    "runner": "reward=vllm_classifier",
    "trust_remote_code": "another model: code that comes with one is never run",
}
# Further arguments that change how fast a sample comes, and not which one.
_HARMLESS = {
    "block_size",
    "compilation_config",
    "cpu_offload_gb",
    "cudagraph_capture_sizes",
    "disable_custom_all_reduce",
    "distributed_executor_backend",
    "download_dir",
    "enable_chunked_prefill",
    "enforce_eager",
    "kv_cache_memory_bytes",
    "load_format",
    "max_cudagraph_capture_size",
    "max_num_batched_tokens",
    "max_parallel_loading_workers",
    "num_gpu_blocks_override",
    "numa_bind",
    "pipeline_parallel_size",
    "safetensors_load_strategy",
    "scheduling_policy",
}
_UNKNOWN = Size(weights=0, cache=0, window=None, heads=0, pairs=0, quantised=False)
_PREFILL = 32768  # tokens read at once on a CPU at most, or a whole prompt where that is more


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is run by vLLM.

    `dtype` is as of the transformers engine, with 16 bits on a GPU where the checkpoint has 32;
    `quantization` a method of vLLM's, None for that of the checkpoint. `max_model_len` bounds prompt
    and answer together, in tokens; None: the model's own. `gpu_memory_utilization` is the fraction of
    each of its GPUs that it gets, None for what the plan gives it; `gpus` the indices of those it may
    use, None for all. `arguments` are further ones of vLLM's AsyncEngineArgs.
    """

    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    gpus: list[int] | None = None
    max_num_seqs: int = 256
    prefix_caching: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def shared(cls, engine: Mapping[str, Any]) -> dict[str, Any]:
        """Those among the fields of engine=vllm that hold for every agent.

        What it says of GPUs is about all of them together; an agent's own are in its options.
        """
        of_all = {"gpu_memory_utilization", "gpus"}
        return {name: engine[name] for name in cls.__dataclass_fields__ if name in engine.keys() - of_all}

    @classmethod
    def of(cls, shared: Mapping[str, Any], options: Mapping[str, Any], what: str, whose: str) -> Settings:
        """`shared` settings, overridden by `options`; `what` is their place in the configuration.

        Raises BadInput for one that does not exist or cannot be.
        """
        for where, fields in ((what, shared), (f"options of {whose}", options)):
            given = fields.get("arguments")
            if given is not None and not isinstance(given, Mapping):
                raise BadInput(
                    f"{where}: arguments={given!r} is no mapping; give one, as {{kv_cache_dtype: fp8}}"
                )
        gpus = options.get("gpus")
        indices = isinstance(gpus, list) and all(type(gpu) is int and gpu >= 0 for gpu in gpus)
        if gpus is not None and not indices:
            raise BadInput(f"{whose}: gpus={gpus!r}; give the indices of its GPUs, as [0, 1]")
        arguments = {**(shared.get("arguments") or {}), **(options.get("arguments") or {})}
        made = call(cls, {**shared, **options, "arguments": arguments}, what)
        made._check(whose)
        return made

    def _check(self, whose: str) -> None:
        if self.dtype not in loading.DTYPES[:1] + loading.DTYPES[2:]:
            raise choose(f"dtype of {whose}:", self.dtype, ["auto", "float32", "bfloat16", "float16"])
        for name in ("max_model_len", "tensor_parallel_size", "max_num_seqs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{whose}: {name}={value} must be at least 1")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise BadInput(f"{whose}: gpu_memory_utilization={share} is a fraction above 0, up to 1")
        if self.gpus is not None and len(set(self.gpus)) < self.tensor_parallel_size:
            raise BadInput(
                f"{whose}: gpus={self.gpus} are fewer than tensor_parallel_size={self.tensor_parallel_size}"
            )
        for name in self.arguments:
            if name in _OWN:
                raise BadInput(f"{whose}: arguments.{name} is set otherwise: use {_OWN[name]}")
        stages = self.arguments.get("pipeline_parallel_size", 1)
        if type(stages) is not int or stages < 1:
            raise BadInput(
                f"{whose}: arguments.pipeline_parallel_size={shown(stages)}; give the number of GPUs "
                f"that the layers are spread over, an integer, 1 or more"
            )
        if self.arguments.get("distributed_executor_backend") == "ray":
            raise BadInput(
                f"{whose}: arguments.distributed_executor_backend=ray lets Ray choose the GPUs, whatever the "
                f"plan gives the model; leave it out, and spread the run over a cluster with runner=ray"
            )

    def deciding(self) -> dict[str, Any]:
        """What of this has a say in the samples; nothing, for a model as it comes."""
        given = {
            "dtype": None if self.dtype == "auto" else self.dtype,
            "quantization": self.quantization,
            "max_model_len": self.max_model_len,
            **{name: value for name, value in self.arguments.items() if name not in _HARMLESS},
        }
        return {name: value for name, value in given.items() if value is not None}

    def model(
        self,
        name: str,
        model: str,
        revision: str | None,
        whose: str,
        *,
        agents: Sequence[str] = (),
    ) -> Model:
        """What the model takes on GPUs, of the `agents` that share it; of none: a reward, which only reads.

        Raises BadInput where it cannot be spread over as many as it is to be, and where what it takes is
        not known and not given either.
        """
        try:
            size = size_of(
                model,
                revision,
                whose,
                dtype=self.dtype,
                quantization=self.quantization,
                cache_dtype=str(self.arguments.get("kv_cache_dtype", "auto")),
            )
        except UnknownSize:
            if self.gpu_memory_utilization is None:
                raise
            size = _UNKNOWN  # its part of a GPU is all that a plan needs
        self._check_heads(size, model, whose)
        parts = self.tensor_parallel_size
        tokens = self.max_model_len or size.window or 0
        stages = self.arguments.get("pipeline_parallel_size", 1)
        return Model(
            name,
            size.weights,
            cache=size.cache if agents else 0,
            tokens=tokens,
            reads=0 if agents else size.cache,
            gpus=parts * stages,
            only=None if self.gpus is None else tuple(self.gpus),
            share=self.gpu_memory_utilization,
            sleeps=bool(agents),
            quantised=size.quantised or self.quantization is not None,
            heads=size.heads if stages == 1 and size.heads else None,
            pairs=size.pairs,
            settings=tuple(("++ensemble", "agents", agent, "options") for agent in agents)
            or (tuple(name.split(".")),),
            places=self.max_num_seqs if agents else 0,
        )

    def _check_heads(self, size: Size, model: str, whose: str) -> None:
        """Raise BadInput where every part of the model would not have as many heads."""
        if size.heads % self.tensor_parallel_size:
            fitting = [str(number) for number in range(1, size.heads + 1) if size.heads % number == 0]
            raise BadInput(
                f"{whose}: tensor_parallel_size={self.tensor_parallel_size} does not divide the {size.heads} "
                f"attention heads of {model!r}; give {', '.join(fitting[:-1])} or {fitting[-1]}"
            )

    def engine_arguments(self, model: str, revision: str | None) -> dict[str, Any]:
        """Arguments of vLLM, in this process and of its server, that do not depend on the machine."""
        return {
            "model": model,
            "revision": revision,
            "tokenizer_revision": revision,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_num_seqs": self.max_num_seqs,
            "enable_prefix_caching": self.prefix_caching,
            "trust_remote_code": False,
        }

    def cpu_arguments(self, model: str, revision: str | None, whose: str) -> dict[str, Any]:
        """What they are on a CPU, where `arguments` do not say otherwise.

        Without chunked prefill, since a seeded request that is read in chunks ends vLLM's engine
        there (its generators know no offset), and with a cache that leaves room for other models. Warns of
        a model that is split, which is meant for GPUs as a rule. Raises BadInput for settings that cannot be
        kept.
        """
        if self.gpus is not None:
            raise BadInput(f"{whose}: gpus={self.gpus}, and there are none on this machine; leave that out")
        if self.tensor_parallel_size > 1:
            log.warning(
                "%s: tensor_parallel_size=%d, and no GPU is visible: vLLM splits the model over so many "
                "processes on this CPU; leave that out, or run where the GPUs are",
                whose,
                self.tensor_parallel_size,
            )
        dtype = "float32" if self.dtype == "auto" else self.dtype
        try:
            size = size_of(model, revision, whose, dtype=dtype)
        except UnknownSize:
            size = _UNKNOWN  # vLLM says so where the least of a cache is too little for it
        self._check_heads(size, model, whose)
        window = self.max_model_len or size.window or 0
        return {
            "dtype": dtype,
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(window, _PREFILL),
            "kv_cache_memory_bytes": max(GIB, size.cache * window),
        }


def sampling_of(agent: Agent) -> dict[str, float]:
    """An agent's further sampling parameters. Raises BadInput for what cannot be sampled with."""
    whose = f"agent {agent.name!r}"
    agent.check_sampling()
    extra = agent.sampling.get("extra_body", {})
    if not isinstance(extra, Mapping):
        raise BadInput(f"{whose}: sampling.extra_body={extra!r} is no mapping of sampling parameters")
    for name, value in extra.items():
        if name not in EXTRA_SAMPLING:
            raise choose(f"sampling.extra_body of {whose} with engine=vllm:", name, EXTRA_SAMPLING)
        if not isinstance(value, int | float):
            raise BadInput(f"{whose}: sampling.extra_body.{name}={value!r} is no number")
    return dict(extra)
