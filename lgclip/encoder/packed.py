"""Stores the vision tower of an encoder in a folder, and encodes with it: no text tower, no other file, no network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lgclip.encoder.backbone import OPEN_CLIP, TIMM, Plan, Tower
from lgclip.encoder.base import Encoder, Towers, Transform, exact_encoder
from lgclip.encoder.fast_resize import EXACT, build_transform
from lgclip.encoder.precision import cast_weights, check_precision, decided, forward
from lgclip.encoder.weight_files import read_config
from lgclip.store.keys import NOT_AN_INPUT, TINY, local_folder

ABOUT = "encoder.json"
WEIGHTS = "vision.safetensors"
_TOLERANCE = 1e-5
"""Largest difference of a component of a unit feature; kernels may add numbers in another order."""


@dataclass(frozen=True)
class PackedEncoder(Encoder):
    """Encodes with a vision tower that `pack_encoder` has stored; its features are those of the original encoder.

    Args:
        folder: The folder.
        precision: `fp32`, `bf16` or `fp16`; `auto` is bf16 on hardware that multiplies in it, fp32
            elsewhere.
        batch_size: Number of views per forward pass.

    Raises:
        ValueError: If a value is out of range, or the folder holds no packed encoder.
    """

    key_name: ClassVar[str] = "PackedEncoder"

    has_text = False

    folder: str
    precision: str = "auto"
    batch_size: int = field(default=128, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size={self.batch_size}: it must be at least 1")
        check_precision(self.precision)
        for name in (ABOUT, WEIGHTS):
            if not (Path(self.folder) / name).is_file():
                raise ValueError(f"{self.folder}: no packed encoder, it has no {name}")

    @property
    def model(self) -> str:
        """Returns the name of the original encoder's model."""
        return self._about["model"]

    @property
    def _about(self) -> dict[str, Any]:
        return read_config(Path(self.folder) / ABOUT)

    def repositories(self) -> list[tuple[str, str | None]]:
        return []

    def on(self, device: torch.device) -> "PackedEncoder":
        return replace(self, precision=decided(self.precision, device))

    def inputs(self) -> dict[str, object]:
        """Returns those of the original encoder, since the features are the same."""
        return self._about["inputs"]

    def transform(self, *, squash: bool = False) -> Transform:
        return preprocessing_transform(self._about["preprocessing"], squash=squash)

    def load(self, device: torch.device) -> Towers:
        return _PackedTower(self.tower().body, device, decided(self.precision, device))

    def tower(self) -> Tower:
        about = self._about
        plan = Plan(**about["network"])
        with torch.random.fork_rng(devices=[]):  # its first weights are overwritten
            body = plan.body()
        try:
            # Strict, so that a missing tensor is no random one.
            body.load_state_dict(load_file(Path(self.folder) / WEIGHTS))
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{self.folder}: {WEIGHTS} is damaged or of another network: {reason}") from error
        return Tower(body, plan, about["image_size"], tuple(about["mean"]), tuple(about["std"]), about["interpolation"])


def is_packed(encoder: Encoder) -> bool:
    """Returns whether the weights of an encoder, of a pair those of both, are in a folder of `pack_encoder`."""
    parts = encoder.parts().values() or [encoder]
    return all(isinstance(part, PackedEncoder) for part in parts)


def pack_encoder(encoder: Encoder, folder: Path) -> None:
    """Stores the vision tower of an encoder, and checks that it gives the same features.

    Args:
        encoder: The encoder.
        folder: New or empty folder.

    Raises:
        ValueError: If the tower cannot be extracted, or gives other features by itself.
    """
    try:
        preprocessing = encoder.preprocessing()
        tower = encoder.tower()
    except ValueError as error:
        raise ValueError(f"with_encoder: {type(encoder).__name__} cannot be packed ({error})") from error
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tower.body.state_dict().items()}, folder / WEIGHTS)
    name = str(getattr(encoder, "model", type(encoder).__name__))
    local = local_folder(name)
    about = {
        # Of a folder the name alone: its place on this machine is of no use elsewhere.
        "model": local.name if local is not None and not name.startswith(TINY) else name,
        "inputs": encoder.inputs(),
        "network": asdict(tower.plan),
        "preprocessing": preprocessing,
        "image_size": tower.image_size,
        "mean": tower.mean,
        "std": tower.std,
        "interpolation": tower.interpolation,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
    del tower
    noise = torch.randint(256, (192, 256, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = encoder.transform()(Image.fromarray(noise.numpy()))[None]
    cpu = torch.device("cpu")
    expected = exact_encoder(encoder).load(cpu).images(pixels)
    packed = PackedEncoder(str(folder), "fp32").load(cpu).images(pixels)
    difference = float((expected - packed).abs().max())
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"with_encoder: the vision tower of {type(encoder).__name__} gives other features by itself, the largest "
            f"difference is {difference:.1e}; save without it"
        )


def preprocessing_transform(preprocessing: Mapping[str, Any], *, squash: bool) -> Transform:
    """Returns the transform that `Encoder.preprocessing` describes.

    Args:
        preprocessing: The library, the arguments of its transform, and the way to resize.
        squash: Whether to resize both sides directly to the input size.

    Raises:
        ValueError: If the library is unknown.
    """
    from lgclip.encoder.open_clip import open_clip_transform
    from lgclip.encoder.timm import timm_transform

    makers = {OPEN_CLIP: open_clip_transform, TIMM: timm_transform}
    arguments = dict(preprocessing["arguments"])
    if preprocessing["library"] not in makers:
        raise ValueError(f"{preprocessing['library']}: unknown library, known are {', '.join(makers)}")
    # Files of before it could be chosen do not name the way to resize.
    exact = makers[preprocessing["library"]](arguments, squash=squash)
    return build_transform(exact, preprocessing.get("resize", EXACT))


class _PackedTower:
    def __init__(self, body: nn.Module, device: torch.device, precision: str) -> None:
        self._body = cast_weights(body, precision, device)
        self._device = device
        self._precision = precision

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            features = forward(self._body, pixels, self._precision, self._device)
            # The vision towers of CoCa give the features of the patches as well.
            if isinstance(features, tuple):
                features = features[0]
            return F.normalize(features.float(), dim=-1)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        raise ValueError("this encoder has no text tower")

    def parameters(self) -> dict[str, int]:
        return {"image": sum(parameter.numel() for parameter in self._body.parameters())}
