"""Computes features, reconstructions and generated images with the small models of the package."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lgclip.diffuser.base import image_prompts
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.tiny.install import WEIGHTS
from lgclip.types import TargetClass

Images = UInt8[np.ndarray, "n h w 3"]
IMAGES_PER_CLASS = 10
CPU = torch.device("cpu")


class SmallModels:
    """Holds the encoder and the autoencoder of the package."""

    def __init__(self) -> None:
        encoder = OpenClip("tiny:encoder", precision="fp32")
        self.towers = encoder.load(CPU)
        self._transform = encoder.transform()
        self._vae: Any = AutoencoderKL.from_pretrained(WEIGHTS / "diffuser" / "vae", dtype=torch.float32)

    def features(self, images: Images) -> Float[Tensor, "n d"]:
        """Returns unit features (n, d)."""
        pixels = torch.stack([self._transform(Image.fromarray(image)) for image in images])
        return torch.cat([self.towers.images(part) for part in pixels.split(256)])

    def reconstruct(self, images: Images) -> Images:
        """Returns the images after a round trip through the autoencoder."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            parts = [self._vae.decode(self._vae.encode(part).latent_dist.mean).sample for part in pixels.split(100)]
        again = torch.cat(parts).clamp(-1, 1)
        return ((again + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    def generate(self, names: Sequence[str], sentences: Sequence[str], adapter: str | None = None) -> Images:
        """Returns ten images of each class from its sentence, class by class.

        Args:
            names: Class names, which the noise depends on.
            sentences: Prompt of each class.
            adapter: Folder of LoRA weights.
        """
        pipeline = Diffuser("tiny:diffuser", steps=10, guidance=3.0, size=64, lora=adapter).load(CPU)
        target_classes = [TargetClass(index, name) for index, name in enumerate(names)]
        prompts = image_prompts(target_classes, [[sentence] for sentence in sentences], 1, IMAGES_PER_CLASS)
        return np.concatenate([pipeline(prompts[start : start + 30], 0) for start in range(0, len(prompts), 30)])
