"""Lists the images to classify: files, folders, patterns, shards, and images in memory."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lgclip.datasets.image_shards import ShardImage, is_shard, shard_images
from lgclip.datasets.image_tree import drop_repeated, list_images
from lgclip.datasets.shard_files import ShardFile, local_shard
from lgclip.datasets.shard_listing import find_shards

CACHE_GB = 50.0
"""Limit of the copies of shards of object stores, in 10**9 bytes; those of data sets are in the same cache."""

ImageSource = str | Path | Image.Image | np.ndarray | ShardFile
"""A file, a shard of images, a folder, a glob pattern, a URL of shards, a PIL image or an array (h, w, 3) of bytes."""

ListedImage = Path | Image.Image | ShardImage
"""An image that is to be classified: its file, its pixels, or its bytes."""


def expand_sources(sources: ImageSource | Iterable[ImageSource]) -> Iterator[tuple[str, ListedImage]]:
    """Returns an iterator over name and file, or image, of each image.

    Args:
        sources: One source or several.

    Raises:
        ValueError: If a path does not exist, a pattern matches nothing, a URL names no shards, or an array has another
            shape.
    """
    if isinstance(sources, str | Path | Image.Image | np.ndarray | ShardFile):
        sources = [sources]
    listed: list[ImageSource] = []
    for source in sources:
        if _is_url(source):
            listed += find_shards(_checked_url(str(source)), "images", CACHE_GB)
        else:
            _check(source)
            listed.append(source)
    return _expanded(listed)


def _is_url(source: ImageSource) -> bool:
    return isinstance(source, str) and "://" in source


def _checked_url(url: str) -> str:
    if not is_shard(url):
        raise ValueError(
            f"{url}: addresses are not fetched; download the image and give the file, or give the URL of "
            "shards, such as s3://BUCKET/PREFIX/*.tar"
        )
    return url


def _check(source: ImageSource) -> None:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(
                f"an array of {source.dtype} and shape {source.shape} is no image: give (height, width, 3) bytes"
            )
        return
    if isinstance(source, Image.Image | ShardFile):
        return
    text = str(source)
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
        if isinstance(source, ShardFile):
            yield from _of_shard(source)
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
    if is_shard(path.name):
        yield from _of_shard(local_shard(path))
    else:
        yield str(path), path


def _of_shard(shard: ShardFile) -> Iterator[tuple[str, ListedImage]]:
    for image in shard_images(shard):
        yield image.where, image


def shards_of(sources: Iterable[ImageSource]) -> list[ShardFile]:
    """Returns the shards that some sources name.

    Raises:
        ValueError: If a source does not exist, or is anything else than shards.
    """
    shards: list[ShardFile] = []
    for source in sources:
        if _is_url(source):
            shards += find_shards(_checked_url(str(source)), "images", CACHE_GB)
            continue
        _check(source)
        if not isinstance(source, str | Path):
            raise ValueError(f"{type(source).__name__}: a table per shard needs shards: tar or parquet files")
        path = Path(source).expanduser()
        for match in [path] if path.exists() else _matching(str(source)):
            if match.is_dir() or not is_shard(match.name):
                raise ValueError(f"{match}: no shard; give tar or parquet files, or a pattern such as '{match}/*.tar'")
            shards.append(local_shard(match))
    return shards
