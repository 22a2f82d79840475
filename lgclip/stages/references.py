"""Finds what a classifier without images to evaluate was built from: prompts, synthetic images and features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lgclip.diffuser.base import ImageGenerator, SyntheticImages
from lgclip.stages.caption_set import Captions
from lgclip.stages.extract import synthetic_stream, text_streams
from lgclip.stages.generate import prompt_script, requested_images
from lgclip.stages.image_stage import image_stage
from lgclip.stages.parts import RunParts
from lgclip.stages.streams import Stream
from lgclip.stages.text import stored_run_texts, writing_stage


@dataclass(frozen=True)
class References:
    """Holds the images and sentences of a classifier's prototypes, as far as they are in the store.

    Attributes:
        streams: Sentences and synthetic images, with their stored features.
        prompt_keys: Keys of the prompts of each class.
        synthetic_images: The synthetic images; None if the method uses none.
        seed: The seed of their noise.
        attempts: Largest number of attempts at an image.
    """

    streams: Sequence[Stream]
    prompt_keys: Sequence[str]
    synthetic_images: SyntheticImages | None
    seed: int
    attempts: int


def stored_references(parts: RunParts, store: Path, *, needs_images: bool, needs_text: bool) -> References:
    """Returns the images and sentences that a classifier was built from; computes nothing.

    Args:
        parts: The parts of its run, whose data set has class names alone.
        store: The store's folder.
        needs_images: Whether the method uses synthetic images.
        needs_text: Whether it uses sentences.

    Raises:
        ValueError: If a class has no image in the store.
    """
    dataset = parts.data.evaluated
    streams: list[Stream] = []
    keys: list[str] = []
    if needs_text:
        writing = writing_stage(parts.text, parts, store)
        keys += writing.keys() if writing else []
        texts = stored_run_texts(parts, store, has_prompts=False, compares=False)
        streams += text_streams(dataset, parts.encoder, store, texts)
    images = None
    if needs_images:
        script = prompt_script(store, parts.data, parts.llm, parts.diffuser, parts.counts)
        if not isinstance(script, Captions) and parts.diffuser.needs_prompts:
            keys += script.keys()
        requested = requested_images(parts.diffuser, script, parts.counts)
        images = image_stage(
            parts.diffuser, store, dataset.target_classes, requested, parts.counts.seed
        ).synthetic_images()
        streams.append(synthetic_stream(images, parts.encoder, parts.scales, store))
    attempts = parts.diffuser.retries + 1 if isinstance(parts.diffuser, ImageGenerator) else 1
    return References(streams, keys, images, parts.counts.seed, attempts)
