"""Recipe of `llm=tiny_captioner`: a small image captioner, in the format of ViT-GPT2 (VisionEncoderDecoder).

`python -m lgclip.tiny.captioner [FOLDER]` tells how often what it says of held-out kinds is true.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    SegformerConfig,
    SegformerModel,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from lgclip.tiny.captions import description_of, facts
from lgclip.tiny.corpus import Corpus
from lgclip.tiny.encoder import MEAN, STD
from lgclip.tiny.install import WEIGHTS
from lgclip.tiny.recipe import Recipe
from lgclip.tiny.vocabulary import language_tokenizer
from lgclip.tiny.world import HELD_OUT_KINDS, SIZE, TRAIN_IMAGES_PER_CLASS, Split, image_of, scene_of

IGNORED = -100
MOST_TOKENS = 24
"""Tokens that the longest description has room in, its end included."""


def tower(stem: int, width: int, blocks: int) -> SegformerModel:
    """A small Mix Transformer (arXiv:2105.15203) that gives 8x8 places of a picture, in order.

    Overlapping patches and the convolutions inside its blocks learn shapes from far fewer pictures than a plain ViT
    does, and tell where a place lies by the borders, so it has no position embedding.

    Args:
        stem: Width at 16x16.
        width: Width at 8x8.
        blocks: Blocks at 8x8; there is one at 16x16.
    """
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, blocks],
        hidden_sizes=[stem, width],
        num_attention_heads=[1, 4],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[4, 1],
        mlp_ratios=[2, 3],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
        reshape_last_stage=False,
    )
    config.hidden_size = width  # where VisionEncoderDecoder looks for it
    return SegformerModel(config)


class TinyCaptioner(Recipe):
    """A small vision tower, and a GPT-2 of two small blocks that looks at the places it gives.

    It learns to say all that there is to say, always in the same words, so that what it says can be checked.

    Args:
        corpus: Pictures; each has one description.
        stem: Width of the tower's first stage.
        width: Width of its second, and of the decoder.
        blocks: Blocks of its second stage.
        layers: Blocks of the decoder.
        **schedule: See `Recipe`.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        stem: int = 32,
        width: int = 128,
        blocks: int = 3,
        layers: int = 2,
        **schedule: float,
    ) -> None:
        super().__init__(corpus, **schedule)  # pyright: ignore[reportArgumentType]
        descriptions = [corpus.description(index) for index in range(len(corpus))]
        self.tokenizer: Any = language_tokenizer(descriptions)
        self.tokenizer.chat_template = None
        ids = {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(self.tokenizer),
                n_embd=width,
                n_layer=layers,
                n_head=4,
                n_inner=2 * width,
                n_positions=2 * MOST_TOKENS,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                add_cross_attention=True,
                **ids,
            )
        )
        self.model: Any = VisionEncoderDecoderModel(encoder=tower(stem, width, blocks), decoder=decoder)
        for told in (self.model.config, self.model.generation_config):
            told.decoder_start_token_id = ids["bos_token_id"]
            told.eos_token_id, told.pad_token_id = ids["eos_token_id"], ids["pad_token_id"]
        self.tokens = self._tokens(descriptions)

    def _tokens(self, descriptions: Sequence[str]) -> Int[Tensor, "n t"]:
        """The descriptions' tokens, each with its end; what follows it is no target."""
        rows = self.tokenizer([text + self.tokenizer.eos_token for text in descriptions])["input_ids"]
        tokens = torch.full((len(rows), max(map(len, rows))), IGNORED)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        targets = self.tokens[indices]
        counted = targets != IGNORED  # the loss is a mean over these tokens, of which shares differ in number
        own, total = int(counted[self.share].sum()), int(counted.sum())
        pixels = self.corpus.images[indices[self.share]].to(self.device).float() / 127.5 - 1
        read = F.pad(counted, (1, 0), value=True)[self.share, :-1]  # the start stands before the first word
        answer = self.model(
            pixel_values=pixels,
            labels=targets[self.share].to(self.device),
            decoder_attention_mask=read.long().to(self.device),
        )
        return self.weigh(answer.loss, own, total)

    def save(self, folder: Path) -> None:
        self.model.half().save_pretrained(folder)
        self.model.float()
        self.tokenizer.save_pretrained(folder)
        size = {"height": SIZE, "width": SIZE}
        ViTImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)


def describe(folder: Path, pictures: UInt8[Tensor, "n 3 64 64"]) -> list[str]:
    """What a trained captioner says of pictures, in single precision and greedily."""
    model: Any = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    said: list[str] = []
    with torch.inference_mode():
        for batch in pictures.split(100):
            ids = model.generate(pixel_values=batch.float() / 127.5 - 1, max_new_tokens=MOST_TOKENS, do_sample=False)
            said += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return said


def accuracy(folder: Path, split: Split, indices: Sequence[int]) -> dict[str, float]:
    """How often what a trained captioner says is right, by attribute; `all` where every attribute is.

    Args:
        folder: The captioner's.
        split: Of the small world.
        indices: Pictures of that split.
    """
    pictures = torch.stack([torch.from_numpy(image_of(split, index)).permute(2, 0, 1) for index in indices])
    true = [facts(description_of(scene_of(split, index)[0])) for index in indices]
    said = [facts(text) for text in describe(folder, pictures)]
    pairs = list(zip(said, true, strict=True))
    shares = {name: sum(a[name] == b[name] for a, b in pairs) / len(pairs) for name in true[0]}
    return {**shares, "all": sum(a == b for a, b in pairs) / len(pairs)}


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS / "captioner"
    shown: dict[str, tuple[Split, Sequence[int]]] = {
        "seen kinds, new pictures": ("pretrain", range(50_000, 53_000)),
        "held-out kinds": ("train", range(len(HELD_OUT_KINDS) * TRAIN_IMAGES_PER_CLASS)),
    }
    for what, (part, places) in shown.items():
        found = accuracy(given, part, places)
        print(f"{what} ({len(places):,}): " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in found.items()))
