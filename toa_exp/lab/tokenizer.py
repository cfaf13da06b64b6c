"""Tokenizers of the lab, as the files that transformers and vLLM load.

The chat template puts one special token before each message and one after each answer.
"""

from __future__ import annotations

from itertools import islice
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from toa_exp.lab.domain import Domain, problems

PAD, END, USER, ASSISTANT, UNKNOWN = "<pad>", "<end>", "<user>", "<assistant>", "<unk>"
SPECIAL = (PAD, END, USER, ASSISTANT, UNKNOWN)
ASCII = ("\n", *map(chr, range(32, 127)))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}<end>"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def characters() -> PreTrainedTokenizerFast:
    """One token a character: ASCII and the newline."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *ASCII))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer)


def pieces(domain: Domain, size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding with `size` tokens, learnt from problems and answers; no merge crosses a space."""
    rng, texts = Random(domain.name), []
    for prompt in islice(problems(domain, "tokenizer", (4, 8), test=False), 2000):
        parts = domain.parse(prompt)
        texts += [prompt, domain.solution(parts, [part.answer(rng) for part in parts])]
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[,.]| ?[^ \n,.]+| "), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=list(ASCII), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
