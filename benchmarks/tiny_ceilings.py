"""Where the small models of the package lose accuracy: `python -m benchmarks.tiny_ceilings`.

Prototypes are made of ten real test images of each class, of the same ten after the autoencoder, and of ten generated
ones; the other real images are evaluated. The first two look at real images of the classes, so they are ceilings to
measure against, not results.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.datasets.base import Dataset
from lgclip.datasets.embedded import Shapes, ShapesFine
from lgclip.diffuser.base import image_prompts
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.tiny.fine_world import FINE_KINDS
from lgclip.tiny.install import WEIGHTS
from lgclip.tiny.world import HELD_OUT_KINDS
from lgclip.types import TargetClass

SHOTS = 10
CPU = torch.device("cpu")


def top1(prototypes: Float[Tensor, "c d"], features: Float[Tensor, "c n d"]) -> float:
    """Share of `features`, ordered by class, that are nearest to their own class's prototype."""
    right = (features @ prototypes.T).argmax(dim=-1) == torch.arange(len(prototypes))[:, None]
    return right.float().mean().item()


def ceilings(data: Dataset, sentences: Sequence[str]) -> dict[str, float]:
    """Top-1 with prototypes of each kind.

    Args:
        data: Data set whose images are ordered by class, equally many each.
        sentences: Prompt of each class.
    """
    encoder = OpenClip("tiny:encoder", precision="fp32")
    towers, transform = encoder.load(CPU), encoder.transform()
    classes = len(data.class_names)

    def features(images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "c k d"]:
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        return torch.cat([towers.images(part) for part in pixels.split(256)]).unflatten(0, (classes, -1))

    real = np.stack([np.asarray(data.image(index)) for index in range(len(data))])
    by_class = real.reshape(classes, -1, *real.shape[1:])
    shown = by_class[:, :SHOTS].reshape(-1, *real.shape[1:])
    evaluated = features(by_class[:, SHOTS:].reshape(-1, *real.shape[1:]))
    top1_of = {
        "text": top1(towers.texts(list(sentences)), evaluated),
        "real images": top1(normalize(features(shown).mean(dim=1), dim=-1), evaluated),
    }
    vae: Any = AutoencoderKL.from_pretrained(WEIGHTS / "diffuser" / "vae", dtype=torch.float32)
    with torch.inference_mode():
        pixels = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in pixels.split(100)]
    rebuilt = ((torch.cat(parts) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    top1_of["reconstructions"] = top1(normalize(features(rebuilt).mean(dim=1), dim=-1), evaluated)
    pipeline = Diffuser("tiny:diffuser", steps=10, guidance=3.0, size=64).load(CPU)
    target_classes = [TargetClass(index, name) for index, name in enumerate(data.class_names)]
    prompts = image_prompts(target_classes, [[sentence] for sentence in sentences], 1, SHOTS)
    batches = [pipeline(prompts[start : start + 30], 0) for start in range(0, len(prompts), 30)]
    top1_of["generated images"] = top1(normalize(features(np.concatenate(batches)).mean(dim=1), dim=-1), evaluated)
    return top1_of


def worlds() -> dict[str, tuple[Dataset, list[str]]]:
    """Returns each world's data set and the sentence that says what each class looks like."""
    kinds = [f"a photo of a {kind.name}." for kind in HELD_OUT_KINDS]
    fine_kinds = [f"a photo of a {fine_kind.description}." for fine_kind in FINE_KINDS]
    return {
        "shapes": (Shapes(), kinds),
        "shapes_dusk": (Shapes(style="dusk"), kinds),
        "shapes_fine": (ShapesFine(), fine_kinds),
        "shapes_fine, no gap": (ShapesFine(style="photo"), fine_kinds),
    }


if __name__ == "__main__":
    for world, (data, sentences) in worlds().items():
        for kind, accuracy in ceilings(data, sentences).items():
            print(f"{world:<20} prototypes of {kind:<16} {100 * accuracy:5.1f}%", flush=True)
