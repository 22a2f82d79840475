"""Uses captions of real images as prompts (CiP, arXiv:2307.08526): captioners, and prompt formats around a caption."""

import re
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from lgclip.datasets.base import Dataset
from lgclip.prompts.base import PromptGenerator, PromptWriter
from lgclip.prompts.caption_file import CaptionLines, match_images, read_captions, single_line
from lgclip.prompts.caption_shuffle import SHUFFLES
from lgclip.prompts.captioning_models import (
    CaptioningModel,
    ImagePreprocessor,
    ImageToTextModel,
    VisionLanguageModel,
    preprocessor_of,
    unchanged_pixels,
)
from lgclip.prompts.template import fill
from lgclip.runtime.model_folders import check_language_model
from lgclip.store.keys import NOT_AN_INPUT, WEIGHTS, content_key, hub_repositories, key_inputs, local_folder
from lgclip.types import TargetClass

FORMS = {
    "basic": "a photo of {name}",
    "cip": "a photo of {name}, {caption}",
    "caption_only": "{caption}",
}
"""The prompts that the paper compares; `cip` is its own, `basic` its baseline."""

EMPTY = ("error", "name")
"""Policies for an image with an empty caption."""

_GAP = re.compile(r"\{([^{}]*)\}")
_WORDS = ("form", "empty", "shuffle")
"""Fields that turn captions into prompts; the captions themselves do not depend on them."""


@dataclass(frozen=True, kw_only=True)
class CaptionGenerator(PromptGenerator):
    """Generates a prompt from each real training image: its caption, and the name of its class.

    Args:
        form: One of `FORMS`, or a custom sentence with `{name}` and `{caption}` or one of them. Without
            `{caption}` nothing is captioned, and there are as many prompts as images.
        empty: Policy for an image with an empty caption: `error`, or `name`, which uses the basic form for it.
        shuffle: `none`, or a control that deals the captions to other images: to those of their `class`, or to `all`
            but those of their class; see `caption_shuffle`.

    Raises:
        ValueError: If the form has neither placeholder, or an unknown one, `empty` or `shuffle` is unknown, or captions
            are shuffled that the form does not use.
    """

    needs_images: ClassVar[bool] = True
    prompts_from: ClassVar[str] = "captions"

    form: str = "cip"
    empty: str = "error"
    shuffle: str = "none"

    def __post_init__(self) -> None:
        gaps = _GAP.findall(self.template)
        unknown = sorted({gap for gap in gaps if gap not in ("name", "caption")})
        # A leftover brace would be in every prompt and be rendered as text.
        if unknown or not gaps or set("{}") & set(_GAP.sub("", self.template)):
            reason = "it has no {name} or {caption}, or half a brace"
            if unknown:
                reason = f"{{{unknown[0]}}} is not known"
            raise ValueError(
                f"llm.form={self.form!r}: {reason}; choose {', '.join(FORMS)}, or write a sentence with {{name}}, "
                "{caption} or both"
            )
        if self.empty not in EMPTY:
            raise ValueError(f"llm.empty={self.empty}: choose {' or '.join(EMPTY)}")
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"llm.shuffle={self.shuffle}: choose {', '.join(SHUFFLES)}")
        if self.shuffle != "none" and not self.reads_captions:
            raise ValueError(
                f"llm.shuffle={self.shuffle}: llm.form={self.form} uses no captions to shuffle; choose a form with "
                "{caption}, or llm.shuffle=none"
            )

    @property
    def template(self) -> str:
        """Returns the sentence with placeholders."""
        return FORMS.get(self.form, self.form)

    @property
    def form_name(self) -> str:
        """Returns the form of its prompts, and how the captions are shuffled."""
        return f"{self.form}{SHUFFLES[self.shuffle]}"

    @property
    def reads_captions(self) -> bool:
        """Returns whether its prompts contain captions."""
        return "{caption}" in self.template

    def captioned_by(self) -> dict[str, object]:
        """Returns everything that a caption depends on besides its image."""
        return {name: value for name, value in key_inputs(self).items() if name not in _WORDS}

    def prompt(self, target_class: TargetClass, caption: str) -> str:
        """Returns the prompt of one image; in the basic form if its caption is empty and the form needs one."""
        template = self.template
        # With an empty caption "a photo of robin, " would end in a comma, and `caption_only` in nothing at all.
        if self.reads_captions and not caption:
            template = FORMS["basic"]
        return fill(template, target_class, caption=caption)

    def load(self, device: torch.device) -> PromptWriter:
        raise ValueError(f"{type(self).__name__} captions images and cannot write from class names only")

    def check_images(self, images: Dataset) -> None:
        """Checks that images can be captioned, before anything loads; the default checks nothing.

        Args:
            images: The real training images.

        Raises:
            ValueError: If they cannot.
        """
        return None

    @abstractmethod
    def available_captions(self, images: Dataset) -> dict[str, str]:
        """Returns captions that are available without a model, by image id.

        Raises:
            ValueError: If there is no captioning model, and an image has no caption.
        """

    @abstractmethod
    def preprocessor(self) -> ImagePreprocessor:
        """Returns the preprocessing of images before captioning; loads no weights."""

    @abstractmethod
    def load_model(self, device: torch.device) -> CaptioningModel:
        """Loads the model to `device`."""


@dataclass(frozen=True, kw_only=True)
class Captioner(CaptionGenerator):
    """Captions with an image-to-text or vision-language model of transformers: greedy, fp32 on a CPU, bf16 elsewhere.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; ignored for a folder.
        instruction: Question to a chat model about each image; empty for a model that takes only the image.
        max_new_tokens: Maximum caption length, in tokens.
        batch_size: Images captioned at once on a GPU, and stored together.
        form: As in `CaptionGenerator`.
        empty: As in `CaptionGenerator`.
        shuffle: As in `CaptionGenerator`.

    Raises:
        ValueError: If a value is out of range or the model is a folder that does not exist.
    """

    key_name: ClassVar[str] = "Captioner"

    model: str = field(metadata=WEIGHTS)
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    instruction: str = ""
    max_new_tokens: int = 15
    batch_size: int = field(default=64, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise ValueError("llm.model='': name a model")
        for name in ("max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"llm.{name}={value}: it must be at least 1")
        # Called for its error only: a missing folder is reported before anything is computed.
        local_folder(self.model)

    @property
    def items_per_call(self) -> int:
        return self.batch_size

    def repositories(self) -> list[tuple[str, str | None]]:
        return hub_repositories(self.model, self.revision)

    def check_weights(self) -> None:
        check_language_model(local_folder(self.model), f"llm.model={self.model}")

    def available_captions(self, images: Dataset) -> dict[str, str]:
        return {}

    def preprocessor(self) -> ImagePreprocessor:
        # A chat model sizes the image together with the words of the request, so its own processor does both.
        if self.instruction:
            return unchanged_pixels
        return preprocessor_of(self.model, self.revision)

    def load_model(self, device: torch.device) -> CaptioningModel:
        if not self.instruction:
            return ImageToTextModel(self.model, self.revision, self.max_new_tokens, self.batch_size, device)
        return VisionLanguageModel(
            self.model, self.revision, self.instruction, self.max_new_tokens, self.batch_size, device
        )


@dataclass(frozen=True, kw_only=True)
class CaptionFile(CaptionGenerator):
    """Uses existing captions, such as those of a release or of another run.

    The content of the file is in the key, its location is not.

    Args:
        file: JSON lines `{"image": ID, "caption": TEXT}` or `{"file": PATH, "caption": TEXT}`; of a path, an
            unambiguous end is enough.
        form: As in `CaptionGenerator`.
        empty: As in `CaptionGenerator`.
        shuffle: As in `CaptionGenerator`.

    Raises:
        ValueError: If the file does not exist or is damaged.
    """

    key_name: ClassVar[str] = "CaptionFile"

    file: str = field(metadata=NOT_AN_INPUT)
    content: str = field(init=False)
    lines: CaptionLines = field(init=False, repr=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        lines = read_captions(Path(self.file).expanduser(), "llm.file")
        # The only way to set a field of a frozen dataclass that is computed from another one.
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "content", content_key({"images": dict(lines.by_image), "files": dict(lines.by_file)}))

    def available_captions(self, images: Dataset) -> dict[str, str]:
        return match_images(self.lines, images, f"llm.file={self.file}")

    def preprocessor(self) -> ImagePreprocessor:
        raise ValueError(f"llm.file={self.file}: a file of captions needs no captioning model")

    def load_model(self, device: torch.device) -> CaptioningModel:
        raise ValueError(f"llm.file={self.file}: a file of captions needs no captioning model")


@dataclass(frozen=True, kw_only=True)
class SceneDescriptions(CaptionGenerator):
    """Uses the true descriptions of a data set's images in the place of a captioner's captions.

    They show what captions can do at best. Only data sets whose images are rendered have them. The key needs no text of
    theirs: they follow from the scenes, whose version is in the images' source.

    Args:
        form: As in `CaptionGenerator`.
        empty: As in `CaptionGenerator`.
        shuffle: As in `CaptionGenerator`.
    """

    key_name: ClassVar[str] = "SceneDescriptions"

    def check_images(self, images: Dataset) -> None:
        # The first image answers for all: a data set has descriptions or it has none.
        if len(images) and images.description(0) is None:
            raise ValueError(
                f"llm=scene_descriptions: {images.name} has no descriptions of its images; choose dataset=shapes, or "
                "caption the images by another llm, such as llm=blip2"
            )

    def available_captions(self, images: Dataset) -> dict[str, str]:
        return {image: single_line(images.description(index) or "") for index, image in enumerate(images.ids)}

    def preprocessor(self) -> ImagePreprocessor:
        raise ValueError("llm=scene_descriptions: descriptions need no captioning model")

    def load_model(self, device: torch.device) -> CaptioningModel:
        raise ValueError("llm=scene_descriptions: descriptions need no captioning model")
