"""Passes images through a vision tower with learned vectors among their patches (VPT, arXiv:2203.12119, sec. 3.2)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PromptedTower(nn.Module):
    """Implements one of open_clip's ViTs with a visual prompt; it needs no text tower.

    Args:
        body: The ViT.
        vectors: The prompt: those of the first block, or of each block.
    """

    def __init__(self, body: nn.Module, vectors: Float[Tensor, "l n w"]) -> None:
        super().__init__()
        self.body = body
        self.vectors = nn.Parameter(vectors)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Computes features of preprocessed images."""
        return prompted_features(self.body, self.vectors, pixels)


def prompted_features(
    visual: Any, vectors: Float[Tensor, "l n v"], pixels: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b d"]:
    """Computes features of preprocessed images with a visual prompt; they are not normalized.

    Args:
        visual: One of open_clip's ViTs.
        vectors: The prompt: those of the first block, or of each block, which replace the previous block's outputs
            for them.
        pixels: The images.
    """
    patches = 1 + vectors.shape[1]  # where they start
    # Not `len`, which would be a constant in a traced program.
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    # The positions are added before the vectors come in, which have none: they are no place of the image.
    x = torch.cat([class_token, x], dim=1) + visual.positional_embedding.to(x.dtype)
    x = visual.ln_pre(_insert_vectors(vectors[0], x[:, :1], x[:, 1:]))
    for number, block in enumerate(visual.transformer.resblocks):
        if 0 < number < len(vectors):  # eq. 6 of VPT
            x = _insert_vectors(vectors[number], x[:, :1], x[:, patches:])
        x = block(x)
    # What the prompt has become is no part of the image: means over patches are without it.
    pooled = visual._pool(torch.cat([x[:, :1], x[:, patches:]], dim=1))[0]
    return pooled if visual.proj is None else pooled @ visual.proj


def _insert_vectors(
    vectors: Float[Tensor, "n w"], first: Float[Tensor, "b 1 w"], patches: Float[Tensor, "b p w"]
) -> Float[Tensor, "b q w"]:
    """Concatenates the class token, the vectors of a block and the patches (eq. 4 of VPT)."""
    return torch.cat([first, vectors.to(first.dtype).expand(first.shape[0], -1, -1), patches], dim=1)
