"""Images, and for the text baseline sentences, to unit vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.encoder.backbone import Tower


class Transform(Protocol):
    """An image to the pixels that a tower reads."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]: ...


class Towers(Protocol):
    """An encoder that is ready to encode, its weights in memory."""

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit features of preprocessed images, in fp32."""
        ...

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit features of sentences, in fp32."""
        ...

    def parameters(self) -> dict[str, int]:
        """How many parameters take part in an `image`'s features, and in a `text`'s if there is a text tower."""
        ...


class LearningTowers(NamedTuple):
    """Both towers of an open_clip model, frozen: what a soft prompt is learned through.

    Attributes:
        model: The model.
        tokenizer: Sentences to token ids of the text tower's length.
        device: Where the model is.
        precision: In which arithmetic the towers run.
        scale: What cosines are multiplied by to become logits.
        key: Stands for the towers, whatever the precision.
        name: What they are called in messages.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    precision: str
    scale: float
    key: str
    name: str


class Encoder(ABC):
    """Which towers encode: a light description, hashed into keys; `load` brings the weights."""

    has_text: bool
    precision: str
    batch_size: int

    @abstractmethod
    def on(self, device: torch.device) -> "Encoder":
        """This encoder with what it leaves to the device decided, so that its key tells what is computed."""

    @abstractmethod
    def repositories(self) -> list[tuple[str, str | None]]:
        """Repositories of the hub that the weights are loaded from, each with its revision."""

    @abstractmethod
    def transform(self, *, squash: bool = False) -> Transform:
        """The preprocessing that the vision tower was trained with.

        Args:
            squash: Resize both sides straight to the input size, without a crop: for an image that
                is a crop already. Interpolation and normalisation stay the tower's own.
        """

    @abstractmethod
    def load(self, device: torch.device) -> Towers:
        """The towers on `device`."""

    def tower(self) -> Tower:
        """The vision tower alone, on the CPU and in fp32, to be trained further.

        Raises:
            ValueError: If it cannot be taken out.
        """
        raise ValueError(f"{type(self).__name__}: the tower of this encoder cannot be trained; name another backbone")

    def prompt_key(self, *kinds: str) -> str:
        """Key of the towers that soft prompts are learned through, whatever the precision; no weights are read.

        Args:
            kinds: `text`, `visual`, or both.

        Raises:
            ValueError: If such a prompt cannot be learned through them.
        """
        raise self._no_prompts()

    def learning_towers(self, device: torch.device, *kinds: str) -> LearningTowers:
        """The towers on `device`, frozen, for soft prompts of some kinds.

        Raises:
            ValueError: As of `prompt_key`.
        """
        raise self._no_prompts()

    def _no_prompts(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: this encoder has no text tower, and prompts are learned against one; choose one "
            "of open_clip's, such as encoder=vit_b16 or encoder=tiny"
        )

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Everything that a feature depends on besides its image."""
