"""Runs the generation pipeline: class names or captions to prompts to images; skips stages that lack nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Protocol

from lgclip.datasets.base import Dataset
from lgclip.datasets.splits import DatasetSplits
from lgclip.diffuser.base import ImageSource, Origins, SyntheticImages, image_prompts, seed_of
from lgclip.prompts.base import PromptGenerator
from lgclip.prompts.captioner import CaptionGenerator
from lgclip.stages.caption_set import Captions
from lgclip.stages.captions import caption
from lgclip.stages.context import RunContext
from lgclip.stages.counts import ImageCounts
from lgclip.stages.direct_encoding import DirectEncoding
from lgclip.stages.image_stage import image_stage
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.parts import GenerationParts
from lgclip.stages.prompts import PromptGenerationStage
from lgclip.store.atomic import atomic_write
from lgclip.store.prompts import PromptStore
from lgclip.types import Prompt, TargetClass


class Script(Protocol):
    """Defines the prompts to generate images from, whether generated or captions."""

    @property
    def target_classes(self) -> Sequence[TargetClass]:
        """Returns the classes."""
        ...

    @property
    def count(self) -> int:
        """Returns the requested number of prompts per class."""
        ...

    def texts(self) -> list[list[str]]:
        """Returns the prompts of each class, at most `count`."""
        ...

    def fallback_positions(self) -> Sequence[Sequence[int]]:
        """Returns the positions of each class's prompts that are template sentences in place of a model's."""
        ...


def generate_images(
    context: RunContext, parts: GenerationParts, encoding: DirectEncoding | None = None
) -> SyntheticImages:
    """Generates prompts and images, each stage only if something is missing.

    A source that needs no prompts gets none. A prompt generator that needs images makes a prompt of each of the first
    real training images of a class; a class with fewer images than requested prompts has fewer prompts.

    Args:
        context: Runs the stages, and holds the store.
        parts: Data set, prompt generator, source of the images and counts. Training images are loaded only if the
            prompt generator needs them.
        encoding: Encoder and views of images that are not stored; None if they are stored.

    Raises:
        ValueError: If a class has no image at all, or the prompt generator needs training images and there are none.
    """
    data, diffuser, counts = parts.data, parts.diffuser, parts.counts
    diffuser.inputs()  # a model that cannot be loaded is an error before anything is written
    script = prompt_script(context.store, data, parts.llm, diffuser, counts)
    if isinstance(script, Captions):
        caption(context, script)
    elif diffuser.needs_prompts:
        context.stages.complete("prompts", script, len(data.evaluated.target_classes))
    requested = requested_images(diffuser, script, counts)
    stage = image_stage(diffuser, context.store, data.evaluated.target_classes, requested, counts.seed, encoding)
    if isinstance(stage, ImageGenerationStage):  # the images of a folder stay where they are
        stage.store.in_shards = context.image_format == "tar"
    context.stages.complete("images", stage, len(requested))
    if isinstance(stage, ImageGenerationStage):
        stage.list_shards()
    synthetic_images = stage.synthetic_images()
    if not diffuser.needs_prompts:
        return synthetic_images
    # Of the prompts that an order leaves out, none counts: the report is about the images that were generated.
    templated = []
    for target_class, texts, stand_ins in zip(
        script.target_classes, script.texts(), script.fallback_positions(), strict=True
    ):
        used = places(target_class, len(texts), counts.prompt_order_seed)[: counts.prompts_per_class]
        templated.append(len(set(used) & set(stand_ins)))
    return with_sources(replace(synthetic_images, templated=templated), script, counts.images_per_prompt)


def prompt_script(
    store: Path, data: DatasetSplits, prompt_generator: PromptGenerator, diffuser: ImageSource, counts: ImageCounts
) -> PromptGenerationStage | Captions:
    """Returns the prompts of a run, as far as they are in the store.

    Args:
        store: The store's folder.
        data: The data set.
        prompt_generator: Generates the prompts, or captions the training images.
        diffuser: Source of the images; if it needs no prompts, no training image is loaded.
        counts: Numbers of prompts and images.

    Raises:
        ValueError: If the prompt generator needs training images and there are none, or their classes differ.
    """
    # A folder of images needs no captions, so its run must not fail without training images.
    if isinstance(prompt_generator, CaptionGenerator) and diffuser.needs_prompts:
        return Captions(training_images(data), prompt_generator, store, counts.written_prompts)
    return PromptGenerationStage(
        prompt_generator, PromptStore(store), data.evaluated.target_classes, counts.written_prompts, counts.seed
    )


def training_images(data: DatasetSplits) -> Dataset:
    """Returns the real training images to caption.

    Args:
        data: The data set.

    Raises:
        ValueError: If there are none, or their classes are not the evaluated ones.
    """
    training = data.training
    evaluated_names = [target_class.name for target_class in data.evaluated.target_classes]
    training_names = list(training.class_names)
    if evaluated_names != training_names:
        pairs = zip(evaluated_names, training_names, strict=False)
        # Not strict, since the two may differ in length alone; then there is no first pair that differs.
        differ = next((pair for pair in pairs if pair[0] != pair[1]), None)
        first = f", first {differ[0]!r} and {differ[1]!r}" if differ else ""
        raise ValueError(
            f"dataset={training.name}: its {len(training_names)} training classes are not the {len(evaluated_names)} "
            f"that are evaluated{first}; give both the same names by dataset.names"
        )
    return training


def with_sources(synthetic_images: SyntheticImages, script: Script, images_per_prompt: int) -> SyntheticImages:
    """Adds the source images to synthetic images, if their prompts are captions.

    Args:
        synthetic_images: The images of a run.
        script: Their prompts.
        images_per_prompt: Number of images per prompt.
    """
    if not isinstance(script, Captions):
        return synthetic_images
    images = image_prompts(script.target_classes, script.texts(), script.count, images_per_prompt)
    sources: list[str] = []
    for prompt in chain.from_iterable(script.with_sources()):
        sources.extend([prompt.source] * images_per_prompt)
    # By the prompt and not by place: images that failed for good are in the list of the wanted ones alone.
    source_of = dict(zip(images, sources, strict=True))
    return replace(synthetic_images, sources=[source_of[prompt] for prompt in synthetic_images.prompts], origins=script)


def places(target_class: TargetClass, pool: int, order_seed: int | None) -> list[int]:
    """Returns the order in which a class's prompts are used: that of generation, or a permutation by the seed."""
    if order_seed is None:
        return list(range(pool))
    # Sorted by a hash and not shuffled: with a larger pool the places of a smaller one keep their order.
    name = target_class.name
    occurrence = target_class.occurrence
    return sorted(range(pool), key=lambda place: seed_of("order", order_seed, occurrence, place, name))


def requested_images(diffuser: ImageSource, script: Script, counts: ImageCounts) -> list[Prompt]:
    """Returns the images of a run: for the generated prompts, or without prompts if the source needs none.

    Args:
        diffuser: Source of the images.
        script: The available prompts, complete if they are needed.
        counts: Numbers of prompts and images.
    """
    if diffuser.needs_prompts:
        texts: Sequence[Sequence[str]] = script.texts()
    else:
        texts = [[""] * script.count for _ in script.target_classes]
    # An image belongs to its prompt's place in the pool, so another order generates no other images.
    per_prompt = counts.images_per_prompt
    pool = image_prompts(script.target_classes, texts, script.count, per_prompt)
    requested: list[Prompt] = []
    for target_class, group in groupby(pool, key=lambda prompt: prompt.target_class):
        images = list(group)
        of_prompt = [images[start : start + per_prompt] for start in range(0, len(images), per_prompt)]
        used = places(target_class, len(of_prompt), counts.prompt_order_seed)[: counts.prompts_per_class]
        for place in used:
            requested.extend(of_prompt[place])
    return requested


def write_list(path: Path, synthetic_images: SyntheticImages, class_names: Sequence[str]) -> None:
    """Writes one JSON line per image: class, name, prompt, repeat and location, `FILE` or `SHARD!MEMBER`.

    If the prompt is a caption, also the caption, and the real image's id and file.
    """
    lines = [
        json.dumps(
            {
                "class": prompt.class_index,
                "name": class_names[prompt.class_index],
                "prompt": prompt.text,
                "repeat": prompt.repeat,
                "file": None if file is None else str(file),
                **_origin(synthetic_images.origins, source),
            },
            ensure_ascii=False,
        )
        for prompt, file, source in zip(
            synthetic_images.prompts, synthetic_images.paths, synthetic_images.sources, strict=True
        )
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _origin(origins: Origins | None, source: str) -> dict[str, str]:
    """Returns the metadata of an image's source image; empty without captions."""
    if origins is None:
        return {}
    # A prompt of the basic form goes back to no image. The keys stay, so that all lines have the same.
    if not source:
        return {"caption": "", "source": source, "source_file": ""}
    return {"caption": origins.caption(source), "source": source, "source_file": origins.where(source)}
