"""Learnt prompts at work: an encoder that sees images through a visual one, classes told by a text one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.files import checkpoint_content, read_learnt
from lgclip.identity import SCHEMA, STANDS_FOR, inputs_of
from lgclip.prompt_files import about_prompt, load_prompt
from lgclip.soft_prompts import VisualPrompt

ABOUT = "learner.json"
"""File of a learner's folder that is written last, so where it is, the learner is whole."""

FILES = {"text": "text.safetensors", "visual": "visual.safetensors"}
"""Files of the prompts, by their kind."""


@dataclass(frozen=True)
class Learnt:
    """A folder that prompts were learnt into.

    Args:
        folder: Where it lies.

    Raises:
        ValueError: If there is no whole learner in it.
    """

    folder: str

    def __post_init__(self) -> None:
        about = self.about
        kinds = about.get("kinds")
        if not isinstance(kinds, list) or not all(kind in FILES for kind in kinds) or "class_names" not in about:
            raise ValueError(f"ckpt={self.folder}: its {ABOUT} is of no prompt learner; learn it again")
        for kind in kinds:
            about_prompt(self.file(kind))  # one that is damaged is said before work starts

    @property
    def about(self) -> dict[str, Any]:
        """What its learner.json says; a ValueError if there is none, or it is damaged."""
        return read_learnt(self.folder, ABOUT, "air")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which prompts it holds; none if nothing was learnt, which is zero-shot."""
        return tuple(self.about["kinds"])

    def file(self, kind: str) -> Path:
        """Where a prompt lies.

        Args:
            kind: `text` or `visual`.
        """
        return Path(self.folder).expanduser() / FILES[kind]

    def check(self, encoder: Encoder, class_names: Sequence[str]) -> None:
        """Compares what it was learnt through and for with what it is to judge; no weights are read.

        Args:
            encoder: The run's.
            class_names: Of the data set to judge.

        Raises:
            ValueError: If it was learnt through other towers, or has vectors of other classes' own.
        """
        for kind in self.kinds:
            about = about_prompt(self.file(kind))
            if about["encoder"] != encoder.prompt_key(kind):
                raise ValueError(
                    f"ckpt={self.folder}: its {kind} prompt was learnt through encoder.model={about['name']}, width "
                    f"{about['width']}, and this encoder is another; judge it with that one"
                )
            if about["prompt"].get("per_class") and tuple(about["class_names"]) != tuple(class_names):
                raise ValueError(
                    f"ckpt={self.folder}: each of its {len(about['class_names'])} classes has vectors of its own, and "
                    "these are other classes; learn it with learner.per_class=false to judge it on them"
                )

    def encoder(self, encoder: Encoder) -> Encoder:
        """Who encodes the images: `encoder` itself, unless there is a visual prompt.

        Args:
            encoder: The run's.
        """
        return PromptedEncoder(encoder, str(self.file("visual"))) if "visual" in self.kinds else encoder

    def class_features(
        self, encoder: Encoder, class_names: Sequence[str], device: torch.device
    ) -> Float[Tensor, "c d"] | None:
        """Unit features of classes by the text prompt, on the CPU; None if the classes are told by sentences.

        Args:
            encoder: The run's.
            class_names: The classes, of any data set unless each has vectors of its own.
            device: Where the text tower runs.

        Raises:
            ValueError: If it was learnt through other towers, or the classes are too long or others.
        """
        if "text" not in self.kinds:
            return None
        prompt = load_prompt(self.file("text"), encoder.learning_towers(device, "text"), class_names)
        with torch.no_grad():
            return prompt().cpu()


@dataclass(frozen=True)
class PromptedEncoder(Encoder):
    """An encoder with a learnt visual prompt among its patches; sentences it reads as before.

    Args:
        base: The encoder.
        file: The prompt, as safetensors.
    """

    has_text = True

    base: Encoder = field(metadata={STANDS_FOR: lambda part: part.base.inputs()})
    file: str = field(metadata={STANDS_FOR: lambda part: checkpoint_content(part.file)})

    @property
    def precision(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder's own."""
        return self.base.precision

    @property
    def batch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder's own."""
        return self.base.batch_size

    def repositories(self) -> list[tuple[str, str | None]]:
        return self.base.repositories()

    def on(self, device: torch.device) -> "PromptedEncoder":
        return replace(self, base=self.base.on(device))

    def inputs(self) -> dict[str, object]:
        return {"encoder": inputs_of(self), "schema": SCHEMA}

    def prompt_key(self, *kinds: str) -> str:
        return self.base.prompt_key(*kinds)

    def transform(self, *, squash: bool = False) -> Transform:
        return self.base.transform(squash=squash)

    def load(self, device: torch.device) -> Towers:
        prompt = load_prompt(Path(self.file), self.base.learning_towers(device, "visual"))
        assert isinstance(prompt, VisualPrompt)
        return _PromptedTowers(self.base.load(device), prompt, device)


class _PromptedTowers:
    def __init__(self, towers: Towers, prompt: VisualPrompt, device: torch.device) -> None:
        self._towers, self._prompt, self._device = towers, prompt, device

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            return self._prompt(pixels.to(self._device))

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        return self._towers.texts(sentences)

    def parameters(self) -> dict[str, int]:
        found = self._towers.parameters()
        return found | {"image": found["image"] + self._prompt.vectors.numel()}
