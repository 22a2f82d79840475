"""A trained student as an encoder: what it says of an image, as a unit vector (see `logits`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lgclip.augmentation import Change, centred, normalised
from lgclip.encoder.backbone import Network, Plan
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.files import checkpoint_content, read_learnt
from lgclip.encoder.precision import arithmetic, check_precision, decided
from lgclip.identity import NOT_AN_INPUT, SCHEMA, STANDS_FOR, inputs_of
from lgclip.logits import as_unit

ABOUT, WEIGHTS = "student.json", "model.safetensors"
"""The files of a student's folder; the first is written last, so where it is, the student is whole."""

_NEEDED = ("network", "width", "frozen", "class_names", "image_size", "mean", "std", "centre", "interpolation")


@dataclass(frozen=True)
class StudentEncoder(Encoder):
    """A student that `train.py` has trained; it has no text tower.

    Args:
        folder: Where it lies.
        precision: `fp32`, `bf16` or `fp16`; `auto` is bf16 on a GPU and fp32 elsewhere.
        batch_size: Images at once.

    Raises:
        ValueError: If a value is out of range, or the folder holds no student.
    """

    has_text = False

    folder: str = field(metadata={STANDS_FOR: lambda part: part.stands_for()})
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    batch_size: int = field(default=128, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size={self.batch_size}: it must be at least 1")
        check_precision(self.precision)
        about = self.about
        lacking = [name for name in _NEEDED if name not in about]
        if lacking or not self._weights.is_file():
            what = f"its {ABOUT} lacks {', '.join(lacking)}" if lacking else f"it has no {WEIGHTS}"
            raise ValueError(f"ckpt={self.folder}: this is no student, {what}; train one with train.py method=student")

    @property
    def _weights(self) -> Path:
        return Path(self.folder).expanduser() / WEIGHTS

    @property
    def about(self) -> dict[str, Any]:
        """What its student.json says; a ValueError if there is none, or it is damaged."""
        return read_learnt(self.folder, ABOUT, "student")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of its logits."""
        return tuple(self.about["class_names"])

    def repositories(self) -> list[tuple[str, str | None]]:
        return []

    def on(self, device: torch.device) -> "StudentEncoder":
        return replace(self, precision=decided(self.precision, device))

    def inputs(self) -> dict[str, object]:
        return {"encoder": inputs_of(self), "schema": SCHEMA}

    def stands_for(self) -> dict[str, object]:
        """What stands for the folder in a key: its weights, how they are used, and how an image is seen."""
        about = self.about
        used = {name: about[name] for name in _NEEDED if name != "class_names"}
        return {"weights": checkpoint_content(str(self._weights)), "classes": len(about["class_names"]), **used}

    def transform(self, *, squash: bool = False) -> Transform:
        about = self.about
        return _Look(
            centred(about["image_size"], about["centre"], about["interpolation"], squash=squash),
            *(torch.tensor(about[name])[:, None, None] for name in ("mean", "std")),
        )

    def load(self, device: torch.device) -> Towers:
        return _StudentTower(self.network().to(device).eval(), device, decided(self.precision))

    def network(self) -> Network:
        """The network with its weights, on the CPU.

        Raises:
            ValueError: If they do not fit, or the file is damaged.
        """
        about = self.about
        with torch.random.fork_rng(devices=[]):  # its first weights are overwritten
            body = Plan(**about["network"]).body()
            network = Network(body, about["width"], len(about["class_names"]), frozen=about["frozen"])
        try:
            network.load_state_dict(load_file(self._weights))
        except (SafetensorError, RuntimeError, OSError) as error:
            said = str(error).partition("\n")[0]
            raise ValueError(f"{self._weights} is damaged or of another student: {said}; train it again") from error
        return network


class _Look:
    """An image to the pixels that a student reads."""

    def __init__(self, view: Change, mean: Tensor, std: Tensor) -> None:
        self._view, self._mean, self._std = view, mean, std

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return normalised(self._view(pil_to_tensor(image.convert("RGB"))), self._mean, self._std)


class _StudentTower:
    def __init__(self, network: Network, device: torch.device, precision: str) -> None:
        self._network, self._device, self._precision = network, device, precision

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            with arithmetic(self._precision, self._device):
                logits = self._network(pixels.to(self._device))
            return as_unit(logits.float())

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        raise ValueError("this encoder has no text tower")

    def parameters(self) -> dict[str, int]:
        return {"image": sum(parameter.numel() for parameter in self._network.parameters())}
