"""Class names, or captions of real images, to prompts to images, each stage only if something is missing."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

from lgclip.batch import Prompt, Subject
from lgclip.captioning import caption
from lgclip.captions import Captions
from lgclip.damage import OnBadImage
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import ImageSource, Origins, Pictures, image_prompts, seed_of
from lgclip.drawing import Drawing
from lgclip.image_store import KEPT
from lgclip.prompts.base import PromptWriter
from lgclip.prompts.captioner import ImageWriter
from lgclip.stages import Stages
from lgclip.store import PromptStore
from lgclip.whole import write_whole
from lgclip.writing import Writing

_LEAST = {"prompts_per_class": 1, "prompt_pool": 1, "images_per_prompt": 1, "seed": 0, "workers": 0}


class Script(Protocol):
    """The prompts to draw from, written or captioned."""

    @property
    def subjects(self) -> Sequence[Subject]:
        """The classes."""
        ...

    @property
    def count(self) -> int:
        """Prompts wanted of each."""
        ...

    def texts(self) -> list[list[str]]:
        """The prompts of each class, at most `count`."""
        ...

    def standing_in(self) -> Sequence[Sequence[int]]:
        """Places of each class's prompts that are template sentences in place of a model's."""
        ...


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
    training: Callable[[], Dataset] | None = None,
    on_bad_image: OnBadImage = OnBadImage.RAISE,
    workers: int = 0,
) -> Pictures:
    """Class names to prompts to images, each stage only if something is missing.

    A source that needs no prompts has none written. A writer that needs images makes a prompt of each of the first
    real training images of a class; a class with fewer images than prompts are asked for has fewer prompts.

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
        training: Opens the real training images; called only for a writer that needs them.
        on_bad_image: What to do about training images that cannot be read.
        workers: Processes that decode training images.

    Raises:
        ValueError: If a class has no image at all, `images` is not known, or a writer needs training images and there
            are none.
    """
    if images not in KEPT:
        raise ValueError(f"paths.images={images}: choose {' or '.join(KEPT)}")
    diffuser.inputs()  # one that cannot be had is said before anything is written
    pool = prompts_per_class if prompt_order_seed is None else prompt_pool
    if isinstance(writer, ImageWriter) and diffuser.needs_prompts:
        real = opened(writer, training, subjects)
        script: Script = caption(stages, real, writer, root, per_class=pool, workers=workers, on_bad_image=on_bad_image)
    else:
        script = writing = Writing(writer, PromptStore(root), subjects, pool, seed)
        if diffuser.needs_prompts:
            stages.complete("prompts", writing, len(subjects))
    wanted = wanted_images(diffuser, script, prompts_per_class, images_per_prompt, prompt_order_seed)
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
    for c, (texts, stand_ins) in enumerate(zip(script.texts(), script.standing_in(), strict=True)):
        used = places(c, len(texts), prompt_order_seed)[:prompts_per_class]
        templated.append(len(set(used) & set(stand_ins)))
    return traced(replace(pictures, templated=templated), script, images_per_prompt)


def opened(writer: ImageWriter, training: Callable[[], Dataset] | None, subjects: Sequence[Subject]) -> Dataset:
    """The real training images that a writer makes prompts of.

    Args:
        writer: The writer.
        training: Opens them.
        subjects: The classes to draw.

    Raises:
        ValueError: If there are none, or their classes are others.
    """
    if training is None:
        raise ValueError(f"{type(writer).__name__} captions real training images, and none are given")
    real = training()
    ours, theirs = [subject.name for subject in subjects], list(real.class_names)
    if ours != theirs:
        differ = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
        first = f", first {differ[0]!r} and {differ[1]!r}" if differ else ""
        raise ValueError(
            f"dataset={real.name}: its {len(theirs)} training classes are not the {len(ours)} that are judged{first}; "
            "give both the same names by dataset.names"
        )
    return real


def traced(pictures: Pictures, script: Script, images_per_prompt: int) -> Pictures:
    """The images with the real ones that they go back to, if their prompts are captions.

    Args:
        pictures: The images of a run.
        script: The prompts that they were drawn from.
        images_per_prompt: Images of each prompt.
    """
    if not isinstance(script, Captions):
        return pictures
    images = image_prompts(script.texts(), script.count, images_per_prompt)
    sources = [prompt.source for own in script.traced() for prompt in own for _ in range(images_per_prompt)]
    of = dict(zip(images, sources, strict=True))
    return replace(pictures, sources=[of[prompt] for prompt in pictures.prompts], origins=script)


def places(class_index: int, pool: int, order_seed: int | None) -> list[int]:
    """The order in which a class's prompts are used: as they were written, or one of its own for each seed."""
    if order_seed is None:
        return list(range(pool))
    return sorted(range(pool), key=lambda place: seed_of("order", order_seed, class_index, place))


def wanted_images(
    diffuser: ImageSource,
    script: Script,
    prompts_per_class: int,
    images_per_prompt: int,
    prompt_order_seed: int | None = None,
) -> list[Prompt]:
    """The images of a run: of the prompts that were written, or of none where none is needed.

    Args:
        diffuser: Where the images come from.
        script: The prompts to choose from, there if they are needed.
        prompts_per_class: Prompts of each class.
        images_per_prompt: Images of each prompt.
        prompt_order_seed: Of the order in which they are used; None for the order they were written in.
    """
    if diffuser.needs_prompts:
        texts: Sequence[Sequence[str]] = script.texts()
    else:
        texts = [[""] * script.count for _ in script.subjects]
    # An image belongs to its prompt's place in the pool, so another order draws no other images.
    pool = image_prompts(texts, script.count, images_per_prompt)
    wanted: list[Prompt] = []
    for class_index, images in groupby(pool, key=lambda prompt: prompt.class_index):
        own = list(images)
        of_prompt = [own[at : at + images_per_prompt] for at in range(0, len(own), images_per_prompt)]
        for place in places(class_index, len(of_prompt), prompt_order_seed)[:prompts_per_class]:
            wanted.extend(of_prompt[place])
    return wanted


def write_list(path: Path, drawing: Pictures, class_names: Sequence[str]) -> None:
    """Writes one JSON line an image: class, name, prompt, repeat and where it lies, `FILE` or `SHARD!MEMBER`.

    Of an image that was drawn from a caption also the caption, and the real image's id and file.
    """
    lines = [
        json.dumps(
            {
                "class": prompt.class_index,
                "name": class_names[prompt.class_index],
                "prompt": prompt.text,
                "repeat": prompt.repeat,
                "file": str(file),
                **_origin(drawing.origins, source),
            },
            ensure_ascii=False,
        )
        for prompt, file, source in zip(drawing.prompts, drawing.paths, drawing.sources, strict=True)
    ]
    with write_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _origin(origins: Origins | None, source: str) -> dict[str, str]:
    """What is told of the real image that one goes back to; nothing without captions."""
    if origins is None:
        return {}
    told = (origins.caption(source), origins.where(source)) if source else ("", "")
    return {"caption": told[0], "source": source, "source_file": told[1]}
