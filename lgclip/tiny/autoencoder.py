"""Trains the VAE of `diffuser=tiny`: 64x64x3 images to 16x16x8 latents and back."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Int
from torch import Tensor

from lgclip.tiny.corpus import Corpus
from lgclip.tiny.recipe import Recipe

KL_WEIGHT = 1e-5


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Computes differences of neighboring pixels, down and across: what blur loses."""
    return images.diff(dim=-2), images.diff(dim=-1)


class TinyAutoencoder(Recipe):
    """Trains a KL autoencoder without adversary: absolute error of pixels and of edges, and a weak KL.

    Args:
        corpus: Images.
        channels: Width at 64, 32 and 16 pixels.
        latent_channels: Channels of the latents.
        **schedule: See `Recipe`.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        channels: tuple[int, int, int] = (32, 64, 64),
        latent_channels: int = 8,
        **schedule: float,
    ) -> None:
        super().__init__(corpus, **schedule)  # pyright: ignore[reportArgumentType]
        self.model: Any = AutoencoderKL(
            block_out_channels=channels,  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
            latent_channels=latent_channels,
            norm_num_groups=8,
            layers_per_block=1,
            mid_block_add_attention=False,
            sample_size=64,
            force_upcast=False,
        )

    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        images = self.corpus.images[indices[self.share]].to(self.device).float() / 127.5 - 1
        posterior = self.model.encode(images).latent_dist
        mean = posterior.mean
        # Noise for the whole batch, of which this device uses its part: `sample()` of the distribution would sample for
        # this part alone, and the noise would depend on the number of devices.
        noise = torch.randn(len(indices), *mean.shape[1:], device=mean.device, dtype=mean.dtype)[self.share]
        decoded = self.model.decode(mean + posterior.std * noise).sample.float()
        # KL to the standard normal distribution (arXiv:1312.6114, app. B), averaged over the latents.
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        pixels = F.l1_loss(decoded, images)
        # Without an adversary the error of pixels alone gives blurred edges.
        sharpness = sum(F.l1_loss(d, i) for d, i in zip(edges(decoded), edges(images), strict=True))
        count = len(images)
        total = len(indices)
        self.note("pixels", self.weigh(pixels, count, total))
        self.note("kl", self.weigh(kl, count, total))
        return self.weigh(pixels + F.mse_loss(decoded, images) + 0.5 * sharpness + KL_WEIGHT * kl, count, total)

    def save(self, folder: Path) -> None:
        # Stable Diffusion's convention (arXiv:2112.10752, app. G): latents of unit variance.
        with torch.no_grad():
            sample = self.corpus.images[:: max(1, len(self.corpus) // 2048)].to(self.device).float() / 127.5 - 1
            deviation = torch.cat([self.model.encode(x).latent_dist.mean for x in sample.split(128)]).std().item()
        self.model.register_to_config(scaling_factor=1 / deviation)
        self.model.half().save_pretrained(folder)
        self.model.float()  # `half` works in place, and the model may be trained or tested further
