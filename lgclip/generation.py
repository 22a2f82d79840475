"""Class names to prompts to images, each stage only if something is missing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lgclip.batch import Prompt, Subject
from lgclip.diffuser.base import ImageSource, Pictures, image_prompts
from lgclip.prompts.base import PromptWriter
from lgclip.stages import Stages
from lgclip.store import PromptStore, write_whole
from lgclip.writing import Writing

_LEAST = {"prompts_per_class": 1, "images_per_prompt": 1, "seed": 0, "workers": 0}


def whole_numbers(values: Mapping[str, object]) -> dict[str, int]:
    """The run's whole numbers, checked before any model loads.

    Args:
        values: The run's config, by name; what is no count of a run is left out.

    Raises:
        ValueError: If one is not a whole number or too small.
    """
    checked: dict[str, int] = {}
    for name, least in _LEAST.items():
        if name in values:
            value = values[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value}: it must be a whole number of at least {least}")
            checked[name] = value
    return checked


def draw(
    stages: Stages,
    subjects: Sequence[Subject],
    writer: PromptWriter,
    diffuser: ImageSource,
    root: Path,
    *,
    prompts_per_class: int,
    images_per_prompt: int,
    seed: int,
) -> Pictures:
    """Class names to prompts to images, each stage only if something is missing.

    A source that needs no prompts has none written.

    Args:
        stages: Runs the stages.
        subjects: The classes.
        writer: Who writes.
        diffuser: Who draws.
        root: The store's folder.
        prompts_per_class: Prompts of each class.
        images_per_prompt: Images of each prompt.
        seed: Of the prompts and of the images' noise.

    Raises:
        ValueError: If a class has no image at all.
    """
    diffuser.inputs()  # one that cannot be had is said before anything is written
    writing = Writing(writer, PromptStore(root), subjects, prompts_per_class, seed)
    if diffuser.needs_prompts:
        stages.complete("prompts", writing, len(subjects))
    wanted = wanted_images(diffuser, writing, prompts_per_class, images_per_prompt)
    drawing = diffuser.stage(root, subjects, wanted, seed)
    stages.complete("images", drawing, len(wanted))
    pictures = drawing.pictures()
    return replace(pictures, templated=writing.templated()) if diffuser.needs_prompts else pictures


def wanted_images(
    diffuser: ImageSource, writing: Writing, prompts_per_class: int, images_per_prompt: int
) -> list[Prompt]:
    """The images of a run: of the prompts that were written, or of none where none is needed.

    Args:
        diffuser: Where the images come from.
        writing: The prompts, written if they are needed.
        prompts_per_class: Prompts of each class.
        images_per_prompt: Images of each prompt.
    """
    if diffuser.needs_prompts:
        texts: Sequence[Sequence[str]] = writing.texts()
    else:
        texts = [[""] * prompts_per_class for _ in writing.subjects]
    return image_prompts(texts, prompts_per_class, images_per_prompt)


def write_list(path: Path, drawing: Pictures, class_names: Sequence[str]) -> None:
    """Writes one JSON line an image: class, name, prompt, repeat and the file it lies in."""
    lines = [
        json.dumps(
            {
                "class": prompt.class_index,
                "name": class_names[prompt.class_index],
                "prompt": prompt.text,
                "repeat": prompt.repeat,
                "file": str(file),
            },
            ensure_ascii=False,
        )
        for prompt, file in zip(drawing.prompts, drawing.paths, strict=True)
    ]
    with write_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
