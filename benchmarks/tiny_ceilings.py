"""Measures where the small models of the package lose accuracy: `python -m benchmarks.tiny_ceilings`.

Prototypes are made of ten real test images of each class, of the same ten after the autoencoder, and of ten generated
ones; the other real images are evaluated. The first two use real images of the classes, so they are upper bounds, not
results.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.small_models import IMAGES_PER_CLASS, Images, SmallModels
from lgclip.datasets.base import Dataset
from lgclip.datasets.embedded import Shapes, ShapesFine
from lgclip.tiny.fine_world import FINE_KINDS
from lgclip.tiny.world import HELD_OUT_KINDS


def top1(prototypes: Float[Tensor, "c d"], features: Float[Tensor, "c n d"]) -> float:
    """Returns the fraction of `features`, ordered by class, that are nearest to the prototype of their class."""
    correct = (features @ prototypes.T).argmax(dim=-1) == torch.arange(len(prototypes))[:, None]
    return correct.float().mean().item()


def measure_ceilings(models: SmallModels, data: Dataset, sentences: Sequence[str]) -> dict[str, float]:
    """Returns top-1 by the source of the prototypes.

    Args:
        models: The small models.
        data: Data set whose images are ordered by class, equally many each.
        sentences: Prompt of each class.
    """
    classes = len(data.class_names)
    real = np.stack([np.asarray(data.image(index)) for index in range(len(data))])
    by_class = real.reshape(classes, -1, *real.shape[1:])
    references = by_class[:, :IMAGES_PER_CLASS].reshape(-1, *real.shape[1:])
    evaluated = models.features(by_class[:, IMAGES_PER_CLASS:].reshape(-1, *real.shape[1:])).unflatten(0, (classes, -1))

    def evaluate_prototypes(images: Images) -> float:
        means = models.features(images).unflatten(0, (classes, -1)).mean(dim=1)
        return top1(normalize(means, dim=-1), evaluated)

    return {
        "text": top1(models.towers.texts(list(sentences)), evaluated),
        "real images": evaluate_prototypes(references),
        "reconstructions": evaluate_prototypes(models.reconstruct(references)),
        "generated images": evaluate_prototypes(models.generate(data.class_names, sentences)),
    }


def load_worlds() -> dict[str, tuple[Dataset, list[str]]]:
    """Returns the data set of each world, and a sentence that describes each class."""
    sentences = [f"a photo of a {kind.name}." for kind in HELD_OUT_KINDS]
    fine_sentences = [f"a photo of a {fine_kind.description}." for fine_kind in FINE_KINDS]
    return {
        "shapes": (Shapes(), sentences),
        "shapes_dusk": (Shapes(style="dusk"), sentences),
        "shapes_fine": (ShapesFine(), fine_sentences),
        "shapes_fine, no gap": (ShapesFine(style="photo"), fine_sentences),
    }


if __name__ == "__main__":
    small_models = SmallModels()
    for world, (data, sentences) in load_worlds().items():
        for source, accuracy in measure_ceilings(small_models, data, sentences).items():
            print(f"{world:<20} prototypes of {source:<16} {100 * accuracy:5.1f}%", flush=True)
