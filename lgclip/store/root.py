"""Locates the content-addressed store of prompts, captions, images and features; entries are written atomically.

    STORE/prompts/KEY.json             prompts of one class
    STORE/captions/KEY/....json        captions of real images by one captioner, one file per batch
    STORE/images/KEY/ab/abcd....png    images by one diffuser, each with its inputs in its text chunks
    STORE/features/KEY/SOURCE/....safetensors   unit features by one encoder, one file per batch

A key covers every input (see `keys`). `inputs.json` next to the entries spells them out, and
`costs.jsonl` records what the entries cost (see `cost_log`); no key depends on costs.
"""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile


class StoreError(ValueError):
    """Reports that the store cannot be used in its present state; the message says how to fix it."""


def cache_folder() -> Path:
    """Returns the user's cache folder: `$XDG_CACHE_HOME`, or else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def root_of(root: str | os.PathLike[str] | None) -> Path:
    """Returns the store's folder, whether or not it exists.

    Args:
        root: The folder; None uses `$LGCLIP_HOME`, or else the user's cache folder.
    """
    if root is None:
        root = os.environ.get("LGCLIP_HOME") or cache_folder() / "lgclip"
    folder = Path(root).expanduser().absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        # The path is part of result.json and of the log, which are UTF-8.
        raise StoreError(
            f"store {str(folder)!a}: its path is no text in UTF-8; rename the folder, or name a link to it by "
            "paths.store=LINK"
        ) from error
    return folder


def open_root(root: str | os.PathLike[str] | None) -> Path:
    """Returns the store's folder, created if needed.

    A store with content may be read-only, since a run that lacks nothing writes nothing to it; whatever writes calls
    `check_writable` first.

    Args:
        root: As in `root_of`.

    Raises:
        StoreError: If there is no such folder and it cannot be created, or it is empty and not writable.
    """
    folder = root_of(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise _unusable(folder, error) from error
    if is_empty:
        check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Checks that files can be written to the store's folder, which is created if needed.

    Raises:
        StoreError: If the system refuses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file is written for a test, since permissions do not show read-only mounts, quotas or network disks.
        # It fails here, before hours of generation whose first image could not be stored.
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"store {folder}: {error.strerror}; name a folder that can be written, paths.store=DIR or LGCLIP_HOME=DIR"
    )
