"""Lists files that hold many images, on this machine or in an object store, by a pattern; reads what lies next to them.

    DIR/test-*.tar, DIR/test-{000..099}.tar                 files of this machine
    s3://BUCKET/PREFIX/test-*.tar, gs://BUCKET/...          a bucket
    hf://datasets/OWNER/NAME/test/*.tar                     a data set of the Hugging Face Hub

`shard_files` opens them.
"""

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from lgclip.datasets.shard_files import ShardFile, local_shard, open_object_store, remote_shard
from lgclip.store.location import Location, parse_location
from lgclip.store.object_store import ObjectInfo

_MAX_FILES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")


def find_shards(pattern: str, option: str, cache_gb: float | None = None, *, folder: str = "") -> list[ShardFile]:
    """Returns the files that fit a pattern, sorted by place.

    Args:
        pattern: A path or a URL; `*`, `[...]`, and in a path `?`, stand for characters of a name, `{a,b}` and
            `{00..99}` for several names.
        option: Setting that names it, for errors.
        cache_gb: Limit of cached copies of files of object stores, in 10**9 bytes; None for none.
        folder: Path or URL that the pattern is relative to; its own name is no pattern, whatever signs are in it.

    Raises:
        ValueError: If no file fits, or one of a range is missing.
    """
    limit = _bytes_of(cache_gb)
    location = parse_location(folder or pattern, option)
    if location is None:
        texts = expand_braces(pattern, option)
        files = [local_shard(path) for text in texts for path in _matching(folder, text, option)]
    else:
        patterns = pattern
        if not folder:
            fixed, patterns = _split(location.path)
            location = replace(location, path=fixed)
        files = _remote(location, patterns, option, limit)
    if not files:
        place = f"{folder}/{pattern}" if folder else pattern
        raise ValueError(f"{option}={place}: no file fits; give a path or a URL such as data/test-*.tar")
    return files


def files_below(location: Location, cache_gb: float | None = None) -> dict[str, ShardFile]:
    """Returns all files below a folder of an object store, by place.

    Args:
        location: The folder.
        cache_gb: As in `find_shards`.

    Raises:
        ObjectError: If the object store cannot be read.
    """
    limit = _bytes_of(cache_gb)
    return {place: remote_shard(location, place, info, limit) for place, info in _listed(location).items()}


def _bytes_of(cache_gb: float | None) -> int | None:
    if cache_gb is not None and not cache_gb > 0:
        raise ValueError(f"dataset.cache_gb={cache_gb}: it must be above 0, or null for no limit")
    return None if cache_gb is None else int(cache_gb * 10**9)


def read_small_file(folder: str, name: str, option: str) -> str | None:
    """Returns the text of a small file of a folder; None if there is none.

    Args:
        folder: A path or a URL.
        name: Place of the file in it.
        option: Setting that names the folder, for errors.

    Raises:
        ValueError: If it cannot be read, or is no text.
    """
    location = parse_location(folder, option)
    try:
        if location is None:
            content = (Path(folder).expanduser() / name).read_bytes()
        else:
            with TemporaryDirectory() as temporary:
                open_object_store(location).get(name, Path(temporary) / "file", None)
                content = (Path(temporary) / "file").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{folder}/{name} cannot be read ({error.strerror or error})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder}/{name} is not text in UTF-8 ({error})") from error


def expand_braces(pattern: str, option: str) -> Iterator[str]:
    """Yields the texts that a pattern with `{a,b}` and `{00..99}` stands for.

    The braceexpand package was considered: it is not maintained, and this much is needed of it.

    Raises:
        ValueError: If a range runs backwards, or there are more than a million.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    head = pattern[: match.start()]
    numbers = _RANGE.fullmatch(match[1])
    choices: Sequence[str]
    if numbers is None:
        choices = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + _MAX_FILES:
            raise ValueError(f"{option}={pattern}: {{{match[1]}}} is no range of at most {_MAX_FILES:,} numbers")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    for choice in choices:
        for tail in expand_braces(pattern[match.end() :], option):
            yield f"{head}{choice}{tail}"


def _matching(folder: str, text: str, option: str) -> list[Path]:
    root = Path(folder).expanduser()
    text = str(Path(text).expanduser())
    if (root / text).is_file():
        return [root / text]
    # Not by Path.glob, which takes no absolute pattern.
    matches = [root / match for match in sorted(glob.glob(text, root_dir=root))]  # noqa: PTH207
    if not matches and not _WILD.search(text):
        raise ValueError(f"{option}: {text}: no such file")
    return [match for match in matches if match.is_file()]


def _remote(folder: Location, patterns: str, option: str, limit: int | None) -> list[ShardFile]:
    listed = _listed(folder)
    matches: dict[str, ObjectInfo] = {}
    for text in expand_braces(patterns, option):
        if not _WILD.search(text):
            if text not in listed:
                raise ValueError(f"{option}={patterns}: there is no {folder.url}/{text}")
            matches[text] = listed[text]
            continue
        parts = text.split("/")
        for place, info in listed.items():
            names = place.split("/")
            if len(names) == len(parts) and all(map(fnmatchcase, names, parts)):
                matches[place] = info
    return [remote_shard(folder, place, matches[place], limit) for place in sorted(matches)]


def _split(path: str) -> tuple[str, str]:
    """Splits a path into the folder before its first pattern, and the rest."""
    parts = path.split("/")
    plain = 0
    while plain < len(parts) - 1 and not re.search(r"[*?\[{]", parts[plain]):
        plain += 1
    return "/".join(parts[:plain]), "/".join(parts[plain:])


def _listed(location: Location) -> dict[str, ObjectInfo]:
    objects = open_object_store(location)
    objects.check()
    return objects.ls()
