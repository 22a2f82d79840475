"""The tokenizers of the small models, learned from the captions alone, in the hub's formats."""

import json
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

CONTEXT_LENGTH = 32
"""Tokens that the small text towers read, start and end included (CLIP reads 77)."""

_END_OF_WORD = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(captions: Iterable[str], merges: int = 500) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's own format: any text can be read, the captions' words are one token.

    Args:
        captions: Text to learn the merges from.
        merges: How many merges to learn at most.
    """
    alphabet = sorted(ByteLevel.alphabet())
    blank = CLIPTokenizer(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    learner = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD, continuing_subword_prefix=""))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=2 * len(alphabet) + merges,
            initial_alphabet=alphabet,
            end_of_word_suffix=_END_OF_WORD,
            show_progress=False,
        ),
    )
    learned = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(a + _END_OF_WORD for a in alphabet), *("".join(pair) for pair in learned)]
    # CLIP's pooling takes the largest id as the end of the text, so the specials come last.
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), _START, _END])}
    return CLIPTokenizer(
        vocab=vocab,
        merges=learned,  # pyright: ignore[reportArgumentType]  pairs, not lines, whatever its annotation says
        model_max_length=CONTEXT_LENGTH,
    )


def clip_ids(tokenizer: CLIPTokenizer, texts: Sequence[Sequence[str]]) -> Int[Tensor, "n v t"]:
    """Token ids of `v` texts of each of `n` pictures, padded or cut to the context length."""
    rows = [tokenizer(list(variants), padding="max_length", truncation=True)["input_ids"] for variants in texts]
    return torch.tensor(rows)


# The line break stands inside the braces: Jinja drops one at the end of a template.
CHAT_TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] + '\\n' }}"
"""The small model is told the class name alone; larger ones read a whole instruction."""


def language_tokenizer(captions: Iterable[str], size: int = 700) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template, for the small language model.

    Args:
        captions: Text to learn the merges from.
        size: Number of tokens, the 256 bytes and the specials included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            special_tokens=[_END, _START],
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_START, eos_token=_END, pad_token=_END)
    fast.chat_template = CHAT_TEMPLATE
    return fast
