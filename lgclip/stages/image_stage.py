"""Chooses the stage that provides the images of a run."""

from collections.abc import Sequence
from pathlib import Path

from lgclip.diffuser.base import ImageCollection, ImageGenerator, ImageSource, ImageStage
from lgclip.stages.direct_encoding import DirectEncoding, DirectEncodingStage
from lgclip.stages.images import ImageGenerationStage
from lgclip.types import Prompt, TargetClass


def image_stage(
    source: ImageSource,
    root: Path,
    target_classes: Sequence[TargetClass],
    prompts: Sequence[Prompt],
    seed: int,
    encoding: DirectEncoding | None = None,
) -> ImageStage:
    """Returns the stage that provides the images of a run.

    Args:
        source: Source of the images.
        root: The store's folder.
        target_classes: The classes.
        prompts: The requested images.
        seed: The run's seed.
        encoding: Encoder and views of images that are not stored; None if they are stored.

    Returns:
        For a generator an `ImageGenerationStage`; for a collection, a stage with nothing to compute.

    Raises:
        TypeError: If the source is neither.
    """
    match source:
        case ImageGenerator():
            if encoding is not None:
                return DirectEncodingStage(source, root, target_classes, prompts, seed, encoding)
            return ImageGenerationStage(source, root, target_classes, prompts, seed)
        case ImageCollection():
            return source.stage(root, target_classes, prompts, seed)
        case _:
            kind = type(source).__name__
            raise TypeError(f"{kind} must derive from ImageGenerator, which generates images, or from ImageCollection")
