"""Trains `llm=tiny_captioner`: a small image captioner, in the format of ViT-GPT2 (VisionEncoderDecoder).

`python -m lgclip.tiny.captioner [FOLDER]` reports how often its captions of held-out classes are correct.
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
"""Maximum number of tokens of a description, including its end token."""


def tower(stem: int, width: int, blocks: int) -> SegformerModel:
    """Builds a small Mix Transformer (arXiv:2105.15203) that returns 8x8 patch features of an image, in order.

    Overlapping patches and the convolutions inside its blocks learn shapes from far fewer images than a plain ViT
    does, and encode positions by the borders, so it has no position embedding.

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
    """Trains a small vision tower, and a GPT-2 of two small blocks that attends to its patch features.

    It learns to mention every attribute, always in the same words, so that its captions can be checked.

    Args:
        corpus: Images; each has one description.
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
        # With a template it would be taken for a chat model, which needs an instruction.
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
        # Training reads the first of them, generation the second; neither takes the ids from the decoder's config.
        for config in (self.model.config, self.model.generation_config):
            config.decoder_start_token_id = ids["bos_token_id"]
            config.eos_token_id = ids["eos_token_id"]
            config.pad_token_id = ids["pad_token_id"]
        self.tokens = self._tokens(descriptions)

    def _tokens(self, descriptions: Sequence[str]) -> Int[Tensor, "n t"]:
        """Returns the descriptions' tokens, each with its end token; padding is not a target."""
        rows = self.tokenizer([text + self.tokenizer.eos_token for text in descriptions])["input_ids"]
        tokens = torch.full((len(rows), max(map(len, rows))), IGNORED)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        targets = self.tokens[indices]
        counted = targets != IGNORED  # the loss is a mean over these tokens, whose number differs between shards
        count = int(counted[self.share].sum())
        total = int(counted.sum())
        pixels = self.corpus.images[indices[self.share]].to(self.device).float() / 127.5 - 1
        read = F.pad(counted, (1, 0), value=True)[self.share, :-1]  # the start token is before the first word
        answer = self.model(
            pixel_values=pixels,
            labels=targets[self.share].to(self.device),
            decoder_attention_mask=read.long().to(self.device),
        )
        return self.weigh(answer.loss, count, total)

    def save(self, folder: Path) -> None:
        self.model.half().save_pretrained(folder)
        self.model.float()
        self.tokenizer.save_pretrained(folder)
        size = {"height": SIZE, "width": SIZE}
        ViTImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)


def describe(folder: Path, synthetic: UInt8[Tensor, "n 3 64 64"]) -> list[str]:
    """Captions images with a trained captioner, in single precision and greedily."""
    model: Any = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    descriptions: list[str] = []
    with torch.inference_mode():
        for batch in synthetic.split(100):
            ids = model.generate(pixel_values=batch.float() / 127.5 - 1, max_new_tokens=MOST_TOKENS, do_sample=False)
            descriptions += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return descriptions


def accuracy(folder: Path, split: Split, indices: Sequence[int]) -> dict[str, float]:
    """Computes the accuracy of a trained captioner by attribute; `all` requires every attribute to be correct.

    Args:
        folder: The captioner's.
        split: Split of the small world.
        indices: Images of that split.
    """
    synthetic = torch.stack([torch.from_numpy(image_of(split, index)).permute(2, 0, 1) for index in indices])
    targets = [facts(description_of(scene_of(split, index)[0])) for index in indices]
    predictions = [facts(text) for text in describe(folder, synthetic)]
    pairs = list(zip(predictions, targets, strict=True))
    accuracies: dict[str, float] = {}
    # Compared as facts and not as text: a missing word then counts against one attribute only.
    for name in targets[0]:
        correct = sum(prediction[name] == target[name] for prediction, target in pairs)
        accuracies[name] = correct / len(pairs)
    accuracies["all"] = sum(prediction == target for prediction, target in pairs) / len(pairs)
    return accuracies


if __name__ == "__main__":
    model_folder = WEIGHTS / "captioner"
    if len(sys.argv) > 1:
        model_folder = Path(sys.argv[1])
    # `pretrain` has no end; indices from 50,000 lie behind those that the corpus uses.
    test_sets: dict[str, tuple[Split, Sequence[int]]] = {
        "seen kinds, new pictures": ("pretrain", range(50_000, 53_000)),
        "held-out kinds": ("train", range(len(HELD_OUT_KINDS) * TRAIN_IMAGES_PER_CLASS)),
    }
    for title, (test_split, test_indices) in test_sets.items():
        result = accuracy(model_folder, test_split, test_indices)
        values = ", ".join(f"{name} {100 * share:.1f}%" for name, share in result.items())
        print(f"{title} ({len(test_indices):,}): {values}")
