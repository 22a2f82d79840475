"""Measures how much of a style's shift diffusion can learn: `python -m benchmarks.domain_gap [--adapter FOLDER]`.

Three values of each style of `shapes`, all independent of prompt tuning:

- top-1 of the text prompts, which shows how strong the shift is;
- the fraction of the mean shift of features that a round trip through the autoencoder keeps: what it drops cannot be
  generated;
- with `--adapter`, LoRA weights that `method=diffuser_lora` tuned on the unlabelled pool of the first style: the
  distance between the mean features of generated and pool images, without and with the weights.
"""

from argparse import ArgumentParser

import numpy as np
import torch

from benchmarks.small_models import Images, SmallModels
from lgclip.datasets.embedded import Shapes
from lgclip.tiny.world import HELD_OUT_KINDS

SENTENCES = [f"a photo of a {kind.name}." for kind in HELD_OUT_KINDS]


def evaluate_text(models: SmallModels, style: str) -> float:
    """Returns top-1 of the text prompts, 0 to 1."""
    data = Shapes(style=style)
    predictions = (models.features(load_images(data)) @ models.towers.texts(SENTENCES).T).argmax(dim=-1)
    return (predictions == torch.tensor(data.labels[::4])).float().mean().item()


def measure_kept_shift(models: SmallModels, style: str) -> float:
    """Returns the fraction of a style's mean shift that the autoencoder keeps, 1 for all of it."""
    plain = load_images(Shapes())
    shifted = load_images(Shapes(style=style))
    shift = models.features(shifted).mean(dim=0) - models.features(plain).mean(dim=0)
    after = models.features(models.reconstruct(shifted)).mean(dim=0)
    after = after - models.features(models.reconstruct(plain)).mean(dim=0)
    return float(after @ shift / shift.square().sum())


def measure_distance_to_pool(models: SmallModels, style: str, adapter: str | None) -> float:
    """Returns the distance between the mean features of generated images and of the unlabelled pool."""
    names = [kind.name for kind in HELD_OUT_KINDS]
    pool = models.features(load_images(Shapes("train", style))).mean(dim=0)
    return (models.features(models.generate(names, SENTENCES, adapter)).mean(dim=0) - pool).norm().item()


def load_images(data: Shapes) -> Images:
    """Returns every fourth image of a data set, equally many of each class (n, h, w, 3)."""
    return np.stack([np.asarray(data.image(index)) for index in range(0, len(data), 4)])


def main() -> None:
    """Prints the values of each style."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--styles", nargs="+", default=["dusk", "noisy"])
    parser.add_argument("--adapter", help="folder of LoRA weights, tuned on the pool of the first style")
    options = parser.parse_args()
    models = SmallModels()
    for style in options.styles:
        accuracy = evaluate_text(models, style)
        print(
            f"{style}: text {100 * accuracy:.1f}%, kept by the autoencoder {measure_kept_shift(models, style):.2f}",
            flush=True,
        )
    if options.adapter:
        style = options.styles[0]
        for name, adapter in (("without", None), ("with", options.adapter)):
            distance = measure_distance_to_pool(models, style, adapter)
            print(f"{style}: distance of generated images to the pool {name} LoRA {distance:.3f}", flush=True)


if __name__ == "__main__":
    main()
