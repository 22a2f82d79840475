"""Captions of real images as prompts (CiP, arXiv 2307.08526): who captions, and the words around a caption."""

import re
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from lgclip.batch import Subject
from lgclip.datasets.base import Dataset
from lgclip.identity import NOT_AN_INPUT, WEIGHTS, hub_repositories, inputs_of, key_of, local_folder
from lgclip.prompts.base import Pen, PromptWriter
from lgclip.prompts.caption_lines import CaptionLines, found_in, read_captions
from lgclip.prompts.eyes import Beholder, Conversant, Eyes, Sight, as_it_is, sight_of
from lgclip.prompts.wording import fill

FORMS = {
    "basic": "a photo of {name}",
    "cip": "a photo of {name}, {caption}",
    "caption_only": "{caption}",
}
"""The prompts that the paper compares; `cip` is its own, `basic` its baseline."""

EMPTY = ("error", "name")
"""What becomes of an image of which a captioner says nothing."""

_GAP = re.compile(r"\{([^{}]*)\}")
_WORDS = ("form", "empty")
"""Fields that make a prompt of a caption; the caption itself does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class ImageWriter(PromptWriter):
    """Makes a prompt of each real training image: its caption, and the name of its class.

    Args:
        form: One of `FORMS`, or a sentence of one's own with `{name}` and `{caption}` or one of them. One without
            `{caption}` has nothing captioned, and gives as many prompts as there are images.
        empty: What becomes of an image of which nothing is said: `error`, or `name`, the basic form for it.

    Raises:
        ValueError: If the form has neither gap, or another one, or `empty` is not known.
    """

    needs_images: ClassVar[bool] = True

    form: str = "cip"
    empty: str = "error"

    def __post_init__(self) -> None:
        gaps = _GAP.findall(self.template)
        strange = sorted({gap for gap in gaps if gap not in ("name", "caption")})
        if strange or not gaps or set("{}") & set(_GAP.sub("", self.template)):
            what = f"{{{strange[0]}}} is not known" if strange else "it has no {name} or {caption}, or half a brace"
            raise ValueError(
                f"llm.form={self.form!r}: {what}; choose {', '.join(FORMS)}, or write a sentence with {{name}}, "
                "{caption} or both"
            )
        if self.empty not in EMPTY:
            raise ValueError(f"llm.empty={self.empty}: choose {' or '.join(EMPTY)}")

    @property
    def template(self) -> str:
        """The sentence with gaps."""
        return FORMS.get(self.form, self.form)

    @property
    def reads_captions(self) -> bool:
        """Whether its prompts hold captions."""
        return "{caption}" in self.template

    def captioned_by(self) -> dict[str, object]:
        """Everything that a caption depends on besides its image."""
        return {name: value for name, value in inputs_of(self).items() if name not in _WORDS}

    def prompt(self, subject: Subject, caption: str) -> str:
        """The prompt of one image; of the basic form if nothing is said of it and a caption is wanted."""
        template = self.template if caption or not self.reads_captions else FORMS["basic"]
        return fill(template, subject, caption=caption)

    def load(self, device: torch.device) -> Pen:
        raise ValueError(f"{type(self).__name__} captions images and cannot write from class names alone")

    @abstractmethod
    def known(self, images: Dataset) -> dict[str, str]:
        """The captions that it has without looking, by image id.

        Raises:
            ValueError: If it cannot look, and an image has none.
        """

    @abstractmethod
    def sight(self) -> Sight:
        """What is done to an image before it is looked at; loads no weights."""

    @abstractmethod
    def look(self, device: torch.device) -> Eyes:
        """The model on `device`."""


@dataclass(frozen=True, kw_only=True)
class Captioner(ImageWriter):
    """An image-to-text or vision-language model of transformers: greedy, fp32 on a CPU, bf16 elsewhere.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; of no use for a folder.
        instruction: What a chat model is asked of each image; empty for a model that is shown the image alone.
        max_new_tokens: Longest caption, in tokens.
        batch_size: Images captioned at once on a GPU, and kept together.
        form: As of `ImageWriter`.
        empty: As of `ImageWriter`.

    Raises:
        ValueError: If a value is out of range or the model is a folder that is not there.
    """

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
        local_folder(self.model)

    @property
    def at_once(self) -> int:
        return self.batch_size

    def repositories(self) -> list[tuple[str, str | None]]:
        return hub_repositories(self.model, self.revision)

    def known(self, images: Dataset) -> dict[str, str]:
        return {}

    def sight(self) -> Sight:
        return as_it_is if self.instruction else sight_of(self.model, self.revision)

    def look(self, device: torch.device) -> Eyes:
        if not self.instruction:
            return Beholder(self.model, self.revision, self.max_new_tokens, self.batch_size, device)
        return Conversant(self.model, self.revision, self.instruction, self.max_new_tokens, self.batch_size, device)


@dataclass(frozen=True, kw_only=True)
class CaptionFile(ImageWriter):
    """Captions that are there already, such as a release's or another run's.

    What the file holds is in the key, where it lies is not.

    Args:
        file: JSON lines `{"image": ID, "caption": TEXT}` or `{"file": PATH, "caption": TEXT}`; of a path its end is
            enough, as much of it as tells the images apart.
        form: As of `ImageWriter`.
        empty: As of `ImageWriter`.

    Raises:
        ValueError: If the file is not there or is damaged.
    """

    file: str = field(metadata=NOT_AN_INPUT)
    content: str = field(init=False)
    lines: CaptionLines = field(init=False, repr=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        lines = read_captions(Path(self.file).expanduser(), "llm.file")
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "content", key_of({"images": dict(lines.by_image), "files": dict(lines.by_file)}))

    def known(self, images: Dataset) -> dict[str, str]:
        return found_in(self.lines, images, f"llm.file={self.file}")

    def sight(self) -> Sight:
        raise ValueError(f"llm.file={self.file}: a file of captions looks at nothing")

    def look(self, device: torch.device) -> Eyes:
        raise ValueError(f"llm.file={self.file}: a file of captions looks at nothing")
