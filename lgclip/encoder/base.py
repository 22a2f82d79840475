"""Encodes images, and for the text baseline sentences, to unit vectors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.encoder.backbone import Tower
from lgclip.runtime.hub import snapshot


class Transform(Protocol):
    """Converts an image to the pixels that a tower takes."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]: ...


class Towers(Protocol):
    """Holds an encoder with its weights in memory."""

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Returns unit features of preprocessed images, in fp32."""
        ...

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        """Returns unit features of sentences, in fp32."""
        ...

    def parameters(self) -> dict[str, int]:
        """Returns the number of parameters behind an `image` feature, and a `text` one if there is a text tower."""
        ...


class LearningTowers(NamedTuple):
    """Holds both frozen towers of an open_clip model, for prompt tuning.

    Attributes:
        model: The model.
        tokenizer: Converts sentences to token ids of the text tower's length.
        device: Device of the model.
        precision: Floating-point precision of the towers.
        scale: Factor that turns cosines into logits.
        key: Content key of the towers, whatever the precision.
        name: Display name for messages.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    precision: str
    scale: float
    key: str
    name: str


class Encoder(ABC):
    """Describes the towers of an encoder, without weights, and is hashed into keys; `load` loads the weights."""

    has_text: bool
    precision: str
    batch_size: int

    @abstractmethod
    def on(self, device: torch.device) -> "Encoder":
        """Returns this encoder with its device-dependent settings resolved, so that its key covers what is computed."""

    @abstractmethod
    def repositories(self) -> list[tuple[str, str | None]]:
        """Returns the hub repositories that the weights are loaded from, each with its revision."""

    def download(self) -> None:
        """Downloads what `load` needs to the hub's cache; loads nothing.

        Raises:
            HubError: If the hub cannot be reached or refuses.
        """
        for repository, revision in self.repositories():
            snapshot(repository, revision)

    @abstractmethod
    def transform(self, *, squash: bool = False) -> Transform:
        """Returns the preprocessing that the vision tower was trained with.

        Args:
            squash: Whether to resize both sides directly to the input size, without a crop: for an image that
                is already a crop. Interpolation and normalization stay the tower's own.
        """

    def preprocessing(self) -> dict[str, Any]:
        """Returns the library of `transform`, its arguments and its way to resize, as plain values.

        Raises:
            ValueError: If its preprocessing is of no library.
        """
        raise ValueError("its preprocessing is of no library")

    @abstractmethod
    def load(self, device: torch.device) -> Towers:
        """Loads the towers to `device`."""

    def check_weights(self) -> None:
        """Checks that `load` will succeed and the tower takes an image, before anything is generated.

        The default checks nothing. An encoder reads no more of its weights than it has to.

        Raises:
            ValueError: If the weights do not fit, or the tower takes no image of its preprocessing.
        """
        return None

    def parts(self) -> Mapping[str, "Encoder"]:
        """Returns the encoders that this one joins, by their fields; none, unless it is a pair."""
        return {}

    def width(self) -> int:
        """Returns the feature dimension of an image; the default loads the tower and encodes one."""
        pixels = self.transform()(Image.new("RGB", (256, 192)))[None]
        return self.load(torch.device("cpu")).images(pixels).shape[1]

    def tower(self) -> Tower:
        """Loads only the vision tower, on the CPU and in fp32, for fine-tuning.

        Raises:
            ValueError: If it cannot be extracted.
        """
        raise ValueError(f"{type(self).__name__}: the tower of this encoder cannot be trained; name another backbone")

    def prompt_key(self, *kinds: str) -> str:
        """Returns the content key of the towers for prompt tuning, whatever the precision; reads no weights.

        Args:
            kinds: `text`, `visual`, or both.

        Raises:
            ValueError: If prompts of these types cannot be tuned with this encoder.
        """
        raise self._no_prompts()

    def learning_towers(self, device: torch.device, *kinds: str) -> LearningTowers:
        """Loads the frozen towers to `device`, for tuning prompts of some types.

        Raises:
            ValueError: As in `prompt_key`.
        """
        raise self._no_prompts()

    def _no_prompts(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: this encoder has no text tower, and prompts are learned against one; choose one "
            "of open_clip's, such as encoder=vit_b16 or encoder=tiny"
        )

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Returns everything that a feature depends on besides its image."""


def exact_encoder(encoder: Encoder) -> Encoder:
    """Returns an encoder in fp32, independent of the device."""
    # An encoder of another package may have no choice of precision.
    if not is_dataclass(encoder):
        return encoder
    values = {field.name: getattr(encoder, field.name) for field in fields(encoder) if field.init}
    within = {name: exact_encoder(value) for name, value in values.items() if isinstance(value, Encoder)}
    if within:  # a pair, or an encoder with a prompt
        return replace(encoder, **within)
    return replace(encoder, precision="fp32") if "precision" in values else encoder
