"""Applies tuned prompts: an encoder with a visual prompt, and class features by a text prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.backbone import VISUAL_PROMPT, Tower
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.precision import cast_weights, decided, forward
from lgclip.encoder.visual_prompt import PromptedTower
from lgclip.encoder.weight_files import checkpoint_content, read_trained
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import STANDS_FOR, key_inputs
from lgclip.training.prompt_tuning.files import about_prompt, load_prompt, visual_vectors

ABOUT = "prompt_tuning.json"
"""File of a prompt tuning's folder that is written last, so that it marks a complete one."""

FILES = {"text": "text.safetensors", "visual": "visual.safetensors"}
"""Files of the prompts, by their type."""


@dataclass(frozen=True)
class LearnedPrompts:
    """Reads a folder of tuned prompts.

    Args:
        folder: The folder.

    Raises:
        ValueError: If it has no complete prompt tuning.
    """

    folder: str

    def __post_init__(self) -> None:
        about = self.about
        kinds = about.get("prompt_types")
        # The file may be of another version. A key that it lacks must be an error here, not in the middle of a run.
        if not isinstance(kinds, list) or not all(kind in FILES for kind in kinds) or "class_names" not in about:
            raise ValueError(f"checkpoint={self.folder}: its {ABOUT} is not of prompt tuning; tune it again")
        for kind in kinds:
            about_prompt(self.file(kind))  # a damaged one is an error before work starts

    @property
    def about(self) -> dict[str, Any]:
        """Returns the content of its prompt_tuning.json; raises a ValueError if it is missing or damaged."""
        return read_trained(self.folder, ABOUT, "air")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the types of its prompts; none if nothing was tuned, which is zero-shot."""
        return tuple(self.about["prompt_types"])

    def file(self, kind: str) -> Path:
        """Returns the file of a prompt.

        Args:
            kind: `text` or `visual`.
        """
        return Path(self.folder).expanduser() / FILES[kind]

    def check(self, encoder: Encoder, class_names: Sequence[str]) -> None:
        """Checks that the prompts match an encoder and class names; reads no weights.

        Args:
            encoder: The run's.
            class_names: Class names of the data set to evaluate.

        Raises:
            ValueError: If they were tuned with other towers, or have per-class vectors of other classes.
        """
        for kind in self.kinds:
            about = about_prompt(self.file(kind))
            # The vectors are points in the towers' embedding space. Through other towers of the same width they would
            # load without an error and mean nothing.
            if about["encoder"] != encoder.prompt_key(kind):
                raise ValueError(
                    f"checkpoint={self.folder}: its {kind} prompt was tuned with encoder.model={about['name']}, "
                    f"width "
                    f"{about['width']}, and this encoder is another; evaluate it with that one"
                )
            # Shared vectors go with any class name. Vectors of a class's own have no meaning for another.
            if about["prompt"].get("per_class") and tuple(about["class_names"]) != tuple(class_names):
                raise ValueError(
                    f"checkpoint={self.folder}: each of its {len(about['class_names'])} classes has vectors of its "
                    f"own, and "
                    "these are other classes; learn it with prompt_tuning.per_class=false to evaluate it on them"
                )

    def encoder(self, encoder: Encoder) -> Encoder:
        """Returns the encoder of the images: `encoder` itself, unless there is a visual prompt.

        Args:
            encoder: The run's.
        """
        if "visual" not in self.kinds:
            return encoder
        return PromptedEncoder(encoder, str(self.file("visual")))

    def class_features(
        self, encoder: Encoder, class_names: Sequence[str], device: torch.device
    ) -> Float[Tensor, "c d"] | None:
        """Computes unit features of classes by the text prompt, on the CPU; None if there is no text prompt.

        Args:
            encoder: The run's.
            class_names: The classes, of any data set unless each has its own vectors.
            device: Device of the text tower.

        Raises:
            ValueError: If it was tuned with other towers, or the class names are too long or differ.
        """
        if "text" not in self.kinds:
            return None
        prompt = load_prompt(self.file("text"), encoder.learning_towers(device, "text"), class_names)
        with torch.no_grad():
            # The classes are few and do not change, so they are computed once, not for each batch.
            return prompt().cpu()


@dataclass(frozen=True)
class PromptedEncoder(Encoder):
    """Encodes images with a tuned visual prompt among their patches; sentences are encoded as before.

    Args:
        base: The encoder.
        file: The prompt, as safetensors.
    """

    key_name: ClassVar[str] = "PromptedEncoder"

    has_text = True

    # The key holds the content of the file, not its path: a copied folder finds the features that are stored already.
    base: Encoder = field(metadata={STANDS_FOR: lambda part: part.base.inputs()})
    file: str = field(metadata={STANDS_FOR: lambda part: checkpoint_content(part.file)})

    @property
    def model(self) -> str:
        """Returns the name of the encoder's model."""
        return str(getattr(self.base, "model", type(self.base).__name__))

    @property
    def precision(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns the encoder's own precision."""
        return self.base.precision

    @property
    def batch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns the encoder's own batch size."""
        return self.base.batch_size

    def repositories(self) -> list[tuple[str, str | None]]:
        return self.base.repositories()

    def on(self, device: torch.device) -> "PromptedEncoder":
        return replace(self, base=self.base.on(device))

    def inputs(self) -> dict[str, object]:
        # Features through the prompt must not be mixed with those of the plain encoder in the store, so the prompt is
        # part of their key.
        return {"encoder": key_inputs(self), "schema": STORE_SCHEMA}

    def prompt_key(self, *kinds: str) -> str:
        return self.base.prompt_key(*kinds)

    def transform(self, *, squash: bool = False) -> Transform:
        return self.base.transform(squash=squash)

    def preprocessing(self) -> dict[str, Any]:
        return self.base.preprocessing()

    def width(self) -> int:
        return self.base.width()

    def tower(self) -> Tower:
        """Loads the vision tower with its prompt, on the CPU and in fp32.

        Raises:
            ValueError: If the prompt was tuned with another encoder.
        """
        vectors = visual_vectors(Path(self.file), self.base.prompt_key("visual"), self.model)
        tower = self.base.tower()
        options = {**tower.plan.options, VISUAL_PROMPT: list(vectors.shape[:2])}
        return tower._replace(body=PromptedTower(tower.body, vectors), plan=replace(tower.plan, options=options))

    def load(self, device: torch.device) -> Towers:
        return _PromptedTowers(self, device)


class _PromptedTowers:
    def __init__(self, encoder: PromptedEncoder, device: torch.device) -> None:
        self._base = encoder.base
        self._device = device
        self._precision = decided(encoder.precision, device)
        self._tower = cast_weights(encoder.tower().body, self._precision, device)

    @cached_property
    def _towers(self) -> Towers:
        # Only sentences need them.
        return self._base.load(self._device)

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            features = forward(self._tower, pixels, self._precision, self._device)
            return F.normalize(features.float(), dim=-1)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        return self._towers.texts(sentences)

    def parameters(self) -> dict[str, int]:
        # With the vectors, of which the encoder's own towers do not know.
        image = sum(parameter.numel() for parameter in self._tower.parameters())
        return self._towers.parameters() | {"image": image}
