"""Class names to prompts to images, each stage only if something is missing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from lgclip.batch import Prompt, Subject
from lgclip.diffuser.base import ImageSource, Pictures, image_prompts, seed_of
from lgclip.drawing import Drawing
from lgclip.image_store import KEPT
from lgclip.prompts.base import PromptWriter
from lgclip.stages import Stages
from lgclip.store import PromptStore
from lgclip.whole import write_whole
from lgclip.writing import Writing

_LEAST = {"prompts_per_class": 1, "prompt_pool": 1, "images_per_prompt": 1, "seed": 0, "workers": 0}


def whole_numbers(values: Mapping[str, object]) -> dict[str, int]:
    """The run's whole numbers, checked before any model loads; an order that is not asked for is left out.

    Args:
        values: The run's config, by name.

    Returns:
        Those that `draw` takes.

    Raises:
        ValueError: If one is not a whole number or too small, or fewer prompts are to choose from than are used.
    """
    given = {name: least for name, least in _LEAST.items() if name in values}
    order = values.get("prompt_order_seed")
    if order is not None:
        given["prompt_order_seed"] = 0
    checked: dict[str, int] = {}
    for name, least in given.items():
        value = values[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value}: it must be a whole number of at least {least}")
        if name != "workers":  # they decode, and count nothing
            checked[name] = value
    used, pool = values.get("prompts_per_class"), values.get("prompt_pool")
    if order is not None and isinstance(used, int) and isinstance(pool, int) and pool < used:
        raise ValueError(f"prompt_pool={pool}: it must be at least prompts_per_class={used} to choose them from")
    return checked


def draw(
    stages: Stages,
    subjects: Sequence[Subject],
    writer: PromptWriter,
    diffuser: ImageSource,
    root: Path,
    images: str = "files",
    *,
    prompts_per_class: int,
    images_per_prompt: int,
    seed: int,
    prompt_pool: int = 10,
    prompt_order_seed: int | None = None,
) -> Pictures:
    """Class names to prompts to images, each stage only if something is missing.

    A source that needs no prompts has none written.

    Args:
        stages: Runs the stages.
        subjects: The classes.
        writer: Who writes.
        diffuser: Who draws.
        root: The store's folder.
        images: How new images are kept, one of `image_store.KEPT`; those that are there are found either way.
        prompts_per_class: Prompts of each class.
        images_per_prompt: Images of each prompt.
        seed: Of the prompts and of the images' noise.
        prompt_pool: How many prompts an order is drawn over.
        prompt_order_seed: Of the order in which each class's prompts are used; None for the order they were written in.

    Raises:
        ValueError: If a class has no image at all, or `images` is not known.
    """
    if images not in KEPT:
        raise ValueError(f"paths.images={images}: choose {' or '.join(KEPT)}")
    diffuser.inputs()  # one that cannot be had is said before anything is written
    pool = prompts_per_class if prompt_order_seed is None else prompt_pool
    writing = Writing(writer, PromptStore(root), subjects, pool, seed)
    if diffuser.needs_prompts:
        stages.complete("prompts", writing, len(subjects))
    wanted = wanted_images(diffuser, writing, prompts_per_class, images_per_prompt, prompt_order_seed)
    drawing = diffuser.stage(root, subjects, wanted, seed)
    if isinstance(drawing, Drawing):  # a folder's images stay where they are
        drawing.store.in_shards = images == "tar"
    stages.complete("images", drawing, len(wanted))
    if isinstance(drawing, Drawing):
        drawing.list_shards()
    pictures = drawing.pictures()
    if not diffuser.needs_prompts:
        return pictures
    templated = []
    for c, (texts, last) in enumerate(zip(writing.texts(), writing.templated(), strict=True)):
        used = places(c, len(texts), prompt_order_seed)[:prompts_per_class]
        templated.append(sum(place >= len(texts) - last for place in used))  # what stands in comes last
    return replace(pictures, templated=templated)


def places(class_index: int, pool: int, order_seed: int | None) -> list[int]:
    """The order in which a class's prompts are used: as they were written, or one of its own for each seed."""
    if order_seed is None:
        return list(range(pool))
    return sorted(range(pool), key=lambda place: seed_of("order", order_seed, class_index, place))


def wanted_images(
    diffuser: ImageSource,
    writing: Writing,
    prompts_per_class: int,
    images_per_prompt: int,
    prompt_order_seed: int | None = None,
) -> list[Prompt]:
    """The images of a run: of the prompts that were written, or of none where none is needed.

    Args:
        diffuser: Where the images come from.
        writing: The prompts to choose from, written if they are needed.
        prompts_per_class: Prompts of each class.
        images_per_prompt: Images of each prompt.
        prompt_order_seed: Of the order in which they are used; None for the order they were written in.
    """
    if diffuser.needs_prompts:
        texts: Sequence[Sequence[str]] = writing.texts()
    else:
        texts = [[""] * writing.count for _ in writing.subjects]
    # An image belongs to its prompt's place in the pool, so another order draws no other images.
    pool = image_prompts(texts, writing.count, images_per_prompt)
    wanted: list[Prompt] = []
    for class_index, images in groupby(pool, key=lambda prompt: prompt.class_index):
        own = list(images)
        of_prompt = [own[at : at + images_per_prompt] for at in range(0, len(own), images_per_prompt)]
        for place in places(class_index, len(of_prompt), prompt_order_seed)[:prompts_per_class]:
            wanted.extend(of_prompt[place])
    return wanted


def write_list(path: Path, drawing: Pictures, class_names: Sequence[str]) -> None:
    """Writes one JSON line an image: class, name, prompt, repeat and where it lies, `FILE` or `SHARD!MEMBER`."""
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
