"""Whether a diffusion model can learn the shift of a style: `python -m benchmarks.domain_gap [--adapter FOLDER]`.

Three values of each style of `shapes`, none of which looks at a tuned prompt:

- top-1 of the text prompts, which says how strong the shift is;
- the fraction of the mean shift of features that a round trip through the autoencoder keeps: what it drops cannot be
  generated;
- with `--adapter`, LoRA weights that `method=diffuser_lora` tuned on the unlabelled pool of the first style: the
  distance between the mean features of generated and pool images, without and with them.
"""

from argparse import ArgumentParser
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lgclip.datasets.embedded import Shapes
from lgclip.diffuser.base import image_prompts
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.tiny.install import WEIGHTS
from lgclip.tiny.world import HELD_OUT_KINDS
from lgclip.types import TargetClass

CPU = torch.device("cpu")
SENTENCES = [f"a photo of a {kind.name}." for kind in HELD_OUT_KINDS]
IMAGES_PER_CLASS = 10


class Measurement:
    """Holds the encoder and the autoencoder that all styles are measured with."""

    def __init__(self) -> None:
        encoder = OpenClip("tiny:encoder", precision="fp32")
        self.towers = encoder.load(CPU)
        self.transform = encoder.transform()
        self.vae: Any = AutoencoderKL.from_pretrained(WEIGHTS / "diffuser" / "vae", dtype=torch.float32)

    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n d"]:
        """Returns unit features."""
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        return torch.cat([self.towers.images(part) for part in pixels.split(256)])

    def rebuilt(self, images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Returns the images after a round trip through the autoencoder."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            parts = [self.vae.decode(self.vae.encode(part).latent_dist.mean).sample for part in pixels.split(100)]
        again = torch.cat(parts).clamp(-1, 1)
        return ((again + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    def text_accuracy(self, data: Shapes) -> float:
        """Returns the top-1 of the text prompts, 0 to 1."""
        predictions = (self.features(pictures(data)) @ self.towers.texts(SENTENCES).T).argmax(dim=-1)
        return (predictions == torch.tensor(data.labels[::4])).float().mean().item()

    def kept(self, style: str) -> float:
        """Returns the fraction of a style's mean shift that the autoencoder keeps; 1 is all of it."""
        plain, shifted = pictures(Shapes()), pictures(Shapes(style=style))
        shift = self.features(shifted).mean(dim=0) - self.features(plain).mean(dim=0)
        after = self.features(self.rebuilt(shifted)).mean(dim=0) - self.features(self.rebuilt(plain)).mean(dim=0)
        return float(after @ shift / shift.square().sum())

    def distance_to_pool(self, style: str, adapter: str | None) -> float:
        """Returns the distance between the mean features of generated images and of the unlabelled pool."""
        pipeline = Diffuser("tiny:diffuser", steps=10, guidance=3.0, size=64, lora=adapter).load(CPU)
        target_classes = [TargetClass(index, kind.name) for index, kind in enumerate(HELD_OUT_KINDS)]
        prompts = image_prompts(target_classes, [[sentence] for sentence in SENTENCES], 1, IMAGES_PER_CLASS)
        batches = [pipeline(prompts[start : start + 30], 0) for start in range(0, len(prompts), 30)]
        pool = self.features(pictures(Shapes("train", style))).mean(dim=0)
        return (self.features(np.concatenate(batches)).mean(dim=0) - pool).norm().item()


def pictures(data: Shapes) -> UInt8[np.ndarray, "n h w 3"]:
    """Returns every fourth image of a data set, equally many of each class."""
    return np.stack([np.asarray(data.image(index)) for index in range(0, len(data), 4)])


def main() -> None:
    """Prints the values of each style."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--styles", nargs="+", default=["dusk", "noisy"])
    parser.add_argument("--adapter", help="folder of LoRA weights, tuned on the pool of the first style")
    options = parser.parse_args()
    measurement = Measurement()
    for style in options.styles:
        accuracy = measurement.text_accuracy(Shapes(style=style))
        print(f"{style}: text {100 * accuracy:.1f}%, kept by the autoencoder {measurement.kept(style):.2f}", flush=True)
    if options.adapter:
        style = options.styles[0]
        for name, adapter in (("without", None), ("with", options.adapter)):
            distance = measurement.distance_to_pool(style, adapter)
            print(f"{style}: distance of generated images to the pool {name} LoRA {distance:.3f}", flush=True)


if __name__ == "__main__":
    main()
