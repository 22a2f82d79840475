"""Trains the tokenizers of the small models on the captions only, in the hub's formats."""

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
_START = "<|startoftext|>"
_END = "<|endoftext|>"


def clip_tokenizer(captions: Iterable[str], merges: int = 500) -> CLIPTokenizer:
    """Trains a byte-level BPE in CLIP's own format: any text can be encoded, the captions' words are one token.

    Args:
        captions: Training texts of the merges.
        merges: Maximum number of merges.
    """
    alphabet = sorted(ByteLevel.alphabet())
    # A tokenizer without merges, from which training takes CLIP's own splitting and lower-casing of texts.
    blank = CLIPTokenizer(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    bpe_tokenizer = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD, continuing_subword_prefix=""))
    bpe_tokenizer.normalizer = blank.backend_tokenizer.normalizer
    bpe_tokenizer.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    bpe_tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=2 * len(alphabet) + merges,
            initial_alphabet=alphabet,
            end_of_word_suffix=_END_OF_WORD,
            show_progress=False,
        ),
    )
    learned = [tuple(pair) for pair in json.loads(bpe_tokenizer.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(a + _END_OF_WORD for a in alphabet), *("".join(pair) for pair in learned)]
    # CLIP's pooling takes the largest id as the end of the text, so the specials come last.
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), _START, _END])}
    return CLIPTokenizer(
        vocab=vocab,
        merges=learned,  # pyright: ignore[reportArgumentType]  pairs, not lines, whatever its annotation says
        model_max_length=CONTEXT_LENGTH,
    )


def clip_ids(tokenizer: CLIPTokenizer, texts: Sequence[Sequence[str]]) -> Int[Tensor, "n v t"]:
    """Returns the token ids of `v` texts of each of `n` images, padded or truncated to the context length."""
    rows = [tokenizer(list(variants), padding="max_length", truncation=True)["input_ids"] for variants in texts]
    return torch.tensor(rows)


# The line break stands inside the braces: Jinja drops one at the end of a template.
CHAT_TEMPLATE = "{{ bos_token }}{{ messages[-1]['content'] + '\\n' }}"
"""The small model gets only the class name; larger ones read a complete instruction."""


def language_tokenizer(captions: Iterable[str], size: int = 700) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with a chat template, for the small language model.

    Args:
        captions: Training texts of the merges.
        size: Number of tokens, including the 256 bytes and the special tokens.
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
