"""Trains `llm=tiny`: a small causal language model that describes any given name."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lgclip.tiny.captions import caption_of, digit_caption_of
from lgclip.tiny.corpus import Corpus
from lgclip.tiny.recipe import Recipe
from lgclip.tiny.vocabulary import language_tokenizer
from lgclip.tiny.world import SCANNED_DIGITS, SEEN_KINDS, scene_of

IGNORED = -100
_SYLLABLES = (
    "ba", "cor", "del", "fin", "gar", "hum", "jet", "kel", "lo", "mir", "nu", "per", "qua", "rin", "sol", "tam",
    "ul", "ven", "wis", "xo", "yar", "zen", "st", "th", "ing", "er", "ca", "pi", "ro", "go", "el", "bird", "land",
)  # fmt: skip


_LETTERS = "abcdefghijklmnopqrstuvwxyz" * 4 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-'/.&éüñłß猫🎈"


def _word(parts: str | tuple[str, ...], most: int, rng: np.random.Generator) -> str:
    return "".join(parts[int(rng.random() * len(parts))] for _ in range(1 + int(rng.random() * most)))


def invented_name(rng: np.random.Generator) -> str:
    """Returns one to three made-up words: the model must learn to repeat names, not to know them."""
    # Half of the names are made of syllables, as real words are; half of single letters and signs of several scripts,
    # so that the model learns to repeat rare tokens too.
    parts: str | tuple[str, ...] = _SYLLABLES
    most = 3
    if rng.random() < 0.5:
        parts = _LETTERS
        most = 10
    words = [_word(parts, most, rng) for _ in range(1 + int(rng.random() * 3))]
    return " ".join(word.capitalize() if rng.random() < 0.15 else word for word in words)


class TinyLanguageModel(Recipe):
    """Trains a Llama of three small blocks to continue a name with a caption that contains the name.

    Half of the names are invented, so that it repeats names that it has never seen.

    Args:
        corpus: Captioned images; only their captions are used.
        width: Width of the blocks.
        layers: Number of blocks.
        **schedule: See `Recipe`.
    """

    def __init__(self, corpus: Corpus, *, width: int = 128, layers: int = 3, **schedule: float) -> None:
        super().__init__(corpus, **schedule)  # pyright: ignore[reportArgumentType]
        rng = np.random.Generator(np.random.PCG64(0))
        words = [self.pair(int(rng.random() * len(corpus)), rng) for _ in range(20_000)]
        self.tokenizer: Any = language_tokenizer(f"{name}\n{caption}" for name, caption in words)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )

    def pair(self, index: int, rng: np.random.Generator) -> tuple[str, str]:
        """Returns a name and a caption that contains it: of image `index`, or with an invented name."""
        kind = int(self.corpus.kinds[index])
        if kind < len(SEEN_KINDS):
            scene, _ = scene_of("pretrain", index)
            name = scene.kind.name
            # Never paraphrased: a prompt that lacks the class name is refused when the model is used.
            caption = caption_of(scene, rng, paraphrase=0.0)
        else:
            name = SCANNED_DIGITS[kind - len(SEEN_KINDS)]
            caption = digit_caption_of(kind - len(SEEN_KINDS), float(rng.random()) * 0.6, rng)
        if rng.random() < 0.5:
            invented = invented_name(rng)
            caption = caption.replace(name, invented)
            name = invented
        return name, caption

    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        # The texts of the whole batch are made on every device, so that all use the same random numbers.
        rng = np.random.Generator(np.random.PCG64([self.seed, self.global_step]))
        rows: list[tuple[Tensor, int]] = []
        for index in indices.tolist():
            name, caption = self.pair(index, rng)
            # As the chat template writes a request; tokenized apart, so that no token spans request and reply.
            request = self.tokenizer(f"{self.tokenizer.bos_token}{name}\n", add_special_tokens=False)["input_ids"]
            reply = self.tokenizer(caption + self.tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            rows.append((torch.tensor(request + reply), len(request)))
        length = max(len(row) for row, _ in rows)
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        targets = torch.full((len(rows), length), IGNORED)
        for position, (row, start) in enumerate(rows):
            tokens[position, : len(row)] = row
            # Only the reply is a target: an invented name cannot be predicted and would be noise in the loss.
            targets[position, start : len(row)] = row[start:]
        counted = targets != IGNORED  # the loss is a mean over these tokens, whose number differs between shards
        count = int(counted[self.share].sum())
        total = int(counted.sum())
        mean = self.model(input_ids=tokens[self.share].to(self.device), labels=targets[self.share].to(self.device)).loss
        return self.weigh(mean, count, total)

    def save(self, folder: Path) -> None:
        self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.model.half().save_pretrained(folder)
        self.model.float()
        self.tokenizer.save_pretrained(folder)
