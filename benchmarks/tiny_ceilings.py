"""Where the small models of the package lose accuracy: `python -m benchmarks.tiny_ceilings`.

Prototypes are made of ten real test images of each held-out class, of the same ten after the
autoencoder, and of ten drawn ones; the other thirty real images are evaluated. The first two look at
real images of the classes, so they are ceilings to measure against, not results.
"""

from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.diffuser.base import image_prompts
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.tiny.install import WEIGHTS
from lgclip.tiny.world import HELD_OUT_KINDS, TEST_IMAGES_PER_CLASS, image_of
from lgclip.types import TargetClass

SHOTS = 10
CPU = torch.device("cpu")


def top1(prototypes: Float[Tensor, "c d"], features: Float[Tensor, "c n d"]) -> float:
    """Share of `features`, ordered by class, that are nearest to their own class's prototype."""
    right = (features @ prototypes.T).argmax(dim=-1) == torch.arange(len(prototypes))[:, None]
    return right.float().mean().item()


def ceilings() -> dict[str, float]:
    """Top-1 on the thirty held-out classes with prototypes of each kind."""
    encoder = OpenClip("tiny:encoder", precision="fp32")
    towers, transform = encoder.load(CPU), encoder.transform()

    def features(images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "c k d"]:
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        return towers.images(pixels).unflatten(0, (len(HELD_OUT_KINDS), -1))

    real = np.stack([image_of("test", i) for i in range(len(HELD_OUT_KINDS) * TEST_IMAGES_PER_CLASS)])
    by_class = real.reshape(len(HELD_OUT_KINDS), TEST_IMAGES_PER_CLASS, *real.shape[1:])
    shown = by_class[:, :SHOTS].reshape(-1, *real.shape[1:])
    judged = features(by_class[:, SHOTS:].reshape(-1, *real.shape[1:]))
    names = [kind.name for kind in HELD_OUT_KINDS]
    found = {
        "text": top1(towers.texts([f"a photo of a {name}." for name in names]), judged),
        "real images": top1(normalize(features(shown).mean(dim=1), dim=-1), judged),
    }
    vae: Any = AutoencoderKL.from_pretrained(WEIGHTS / "diffuser" / "vae", dtype=torch.float32)
    with torch.inference_mode():
        pixels = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1
        again = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    rebuilt = ((again + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    found["reconstructions"] = top1(normalize(features(rebuilt).mean(dim=1), dim=-1), judged)
    brush = Diffuser("tiny:diffuser", steps=10, guidance=3.0, size=64).load(CPU)
    target_classes = [TargetClass(index, name) for index, name in enumerate(names)]
    prompts = image_prompts(target_classes, [[f"a photo of a {name}."] for name in names], 1, SHOTS)
    generated = np.concatenate([brush(prompts[at : at + 30], 0) for at in range(0, len(prompts), 30)])
    found["drawn images"] = top1(normalize(features(generated).mean(dim=1), dim=-1), judged)
    return found


if __name__ == "__main__":
    for kind, share in ceilings().items():
        print(f"prototypes of {kind:<16} {100 * share:5.1f}%")
