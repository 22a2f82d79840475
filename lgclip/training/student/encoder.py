"""Uses a trained student as an encoder: its logits, as unit vectors (see `logits`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from lgclip.encoder.backbone import Network, Plan
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.precision import cast_weights, check_precision, decided_for_training, forward
from lgclip.encoder.weight_files import checkpoint_content, is_intact, read_trained
from lgclip.methods.logits import as_unit
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import NOT_AN_INPUT, STANDS_FOR, key_inputs
from lgclip.training.augmentation import PixelTransform, center_cropped, normalized

ABOUT = "student.json"
WEIGHTS = "model.safetensors"
"""The files of a student's folder; the first is written last, so that it marks a complete student."""

_NEEDED = ("network", "width", "frozen", "class_names", "image_size", "mean", "std", "center_crop", "interpolation")


@dataclass(frozen=True)
class StudentEncoder(Encoder):
    """Encodes with a student that `train.py` has trained; it has no text tower.

    Args:
        folder: The student's folder.
        precision: `fp32`, `bf16` or `fp16`; `auto` is bf16 on a GPU and fp32 elsewhere.
        batch_size: Images per forward pass.

    Raises:
        ValueError: If a value is out of range, or the folder holds no student.
    """

    key_name: ClassVar[str] = "StudentEncoder"

    has_text = False

    folder: str = field(metadata={STANDS_FOR: lambda part: part.stands_for()})
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided_for_training(part.precision)})
    batch_size: int = field(default=128, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size={self.batch_size}: it must be at least 1")
        check_precision(self.precision)
        about = self.about
        lacking = [name for name in _NEEDED if name not in about]
        # Checked when the config is built: another command's folder is then an error before images are generated.
        if lacking or not self._weights.is_file():
            problem = f"it has no {WEIGHTS}"
            if lacking:
                problem = f"its {ABOUT} lacks {', '.join(lacking)}"
            raise ValueError(
                f"checkpoint={self.folder}: this is no student, {problem}; train one with train.py method=student"
            )

    @property
    def _weights(self) -> Path:
        return Path(self.folder).expanduser() / WEIGHTS

    @property
    def about(self) -> dict[str, Any]:
        """Returns the content of its student.json; raises a ValueError if it is missing or damaged."""
        return read_trained(self.folder, ABOUT, "student")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the name of each class, in the order of its logits."""
        return tuple(self.about["class_names"])

    def repositories(self) -> list[tuple[str, str | None]]:
        return []

    def on(self, device: torch.device) -> "StudentEncoder":
        return replace(self, precision=decided_for_training(self.precision, device))

    def inputs(self) -> dict[str, object]:
        return {"encoder": key_inputs(self), "schema": STORE_SCHEMA}

    def stands_for(self) -> dict[str, object]:
        """Returns the folder's identity in a key: its weights, their use, and the preprocessing."""
        about = self.about
        # Names of classes change no logit, so a student whose classes are renamed keeps its features. How an image is
        # cropped and scaled does change them.
        used = {name: about[name] for name in _NEEDED if name != "class_names"}
        return {"weights": checkpoint_content(str(self._weights)), "classes": len(about["class_names"]), **used}

    def transform(self, *, squash: bool = False) -> Transform:
        about = self.about
        return _Look(
            # As it was evaluated in training: another crop or interpolation costs accuracy without an error.
            center_cropped(about["image_size"], about["center_crop"], about["interpolation"], squash=squash),
            *(torch.tensor(about[name])[:, None, None] for name in ("mean", "std")),
        )

    def load(self, device: torch.device) -> Towers:
        return _StudentTower(self.network(), device, decided_for_training(self.precision, device))

    def network(self) -> Network:
        """Returns the network with its weights, on the CPU.

        Raises:
            ValueError: If they do not match, or the file is damaged.
        """
        about = self.about
        if not is_intact(self._weights.parent, ABOUT, {"": WEIGHTS}):
            raise ValueError(f"{self._weights} is damaged: it is not what its {ABOUT} describes; train it again")
        with torch.random.fork_rng(devices=[]):  # its first weights are overwritten
            body = Plan(**about["network"]).body()
            network = Network(body, about["width"], len(about["class_names"]), frozen=about["frozen"])
        try:
            # Strict, so that a missing tensor is no random one.
            network.load_state_dict(load_file(self._weights))
        except (SafetensorError, RuntimeError, OSError) as error:
            # torch lists every tensor that does not fit, a line each.
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{self._weights} is damaged or of another student: {reason}; train it again") from error
        return network


class _Look:
    """Converts an image to the pixels that a student takes."""

    def __init__(self, view: PixelTransform, mean: Tensor, std: Tensor) -> None:
        self._view = view
        self._mean = mean
        self._std = std
        steps = list(getattr(view, "transforms", [view]))
        self.transforms = [*steps, v2.Normalize(mean.flatten().tolist(), std.flatten().tolist())]
        """The steps in order, as those of torchvision's `Compose`, to describe them; `__call__` does the same."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return normalized(self._view(pil_to_tensor(image.convert("RGB"))), self._mean, self._std)


class _StudentTower:
    def __init__(self, network: Network, device: torch.device, precision: str) -> None:
        self._network = cast_weights(network, precision, device)
        self._device = device
        self._precision = precision

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            logits = forward(self._network, pixels, self._precision, self._device)
            return as_unit(logits.float())

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        # `has_text` keeps callers from coming here; this is for those that do not ask.
        raise ValueError("this encoder has no text tower")

    def parameters(self) -> dict[str, int]:
        return {"image": sum(parameter.numel() for parameter in self._network.parameters())}
