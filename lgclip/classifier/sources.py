"""Lists the images to classify: files, folders, patterns, shards, and images in memory."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lgclip.datasets.image_shards import ShardImage, is_shard, shard_images
from lgclip.datasets.image_tree import drop_repeated, list_images

ImageSource = str | Path | Image.Image | np.ndarray
"""A file, a shard of images, a folder, a glob pattern, a PIL image or an array (h, w, 3) of bytes."""

ListedImage = Path | Image.Image | ShardImage
"""An image that is to be classified: its file, its pixels, or its bytes."""


def expand_sources(sources: ImageSource | Iterable[ImageSource]) -> Iterator[tuple[str, ListedImage]]:
    """Returns an iterator over name and file, or image, of each image.

    Args:
        sources: One source or several.

    Raises:
        ValueError: If a path does not exist, a pattern matches nothing, a URL is passed, or an array has another shape.
    """
    if isinstance(sources, str | Path | Image.Image | np.ndarray):
        sources = [sources]
    listed = list(sources)
    for source in listed:
        _check(source)
    return _expanded(listed)


def _check(source: ImageSource) -> None:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(
                f"an array of {source.dtype} and shape {source.shape} is no image: give (height, width, 3) bytes"
            )
        return
    if isinstance(source, Image.Image):
        return
    text = str(source)
    if "://" in text:
        raise ValueError(f"{text}: addresses are not fetched; download the image and give the file")
    if not Path(text).expanduser().exists() and not _matching(text):
        raise ValueError(f"{text}: no such file or folder, and no file matches it as a pattern")


def _matching(pattern: str) -> list[Path]:
    # Not by Path.glob, which takes no absolute pattern.
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207


def _expanded(sources: list[ImageSource]) -> Iterator[tuple[str, ListedImage]]:
    number = 0
    for source in sources:
        if isinstance(source, np.ndarray | Image.Image):
            image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
            yield f"image {number}", image
            number += 1
            continue
        path = Path(source).expanduser()
        # A name with brackets may be a file, so that a pattern is what does not exist.
        matches = [path] if path.exists() else _matching(str(source))
        for match in matches:
            if not match.is_dir():
                yield from _file(match)
                continue
            tree = list_images(match, "", recursive=True)
            dropped = drop_repeated(match, tree.files, tree)
            tree.report(match)
            for file in tree.files:
                if file not in dropped:
                    yield str(match / file), match / file


def _file(path: Path) -> Iterator[tuple[str, ListedImage]]:
    """Yields a file, or the images of a shard."""
    if not is_shard(path):
        yield str(path), path
        return
    for image in shard_images(path):
        yield image.where, image


def shards_of(sources: Iterable[ImageSource]) -> list[Path]:
    """Returns the shards that some sources name.

    Raises:
        ValueError: If a source does not exist, or is anything else than shards.
    """
    shards: list[Path] = []
    for source in sources:
        _check(source)
        if not isinstance(source, str | Path):
            raise ValueError(f"{type(source).__name__}: a table per shard needs shards: tar or parquet files")
        path = Path(source).expanduser()
        for match in [path] if path.exists() else _matching(str(source)):
            if match.is_dir() or not is_shard(match):
                raise ValueError(f"{match}: no shard; give tar or parquet files, or a pattern such as '{match}/*.tar'")
            shards.append(match)
    return shards
