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


def root_of(root: str | os.PathLike[str] | None) -> Path:
    """Returns the store's folder, whether or not it exists.

    Args:
        root: The folder; None uses `$LGCLIP_HOME`, or else the user's cache folder.
    """
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = os.environ.get("LGCLIP_HOME") or Path(cache) / "lgclip"
    return Path(root).expanduser().absolute()


def open_root(root: str | os.PathLike[str] | None) -> Path:
    """Returns the store's folder, created if needed.

    Args:
        root: As in `root_of`.

    Raises:
        StoreError: If the folder is not writable.
    """
    folder = root_of(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file is written for a test, since permissions do not show read-only mounts, quotas or network disks.
        # It fails here, before hours of generation whose first image could not be stored.
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"store {folder}: {error.strerror}; name a folder that can be written, paths.store=DIR or LGCLIP_HOME=DIR"
        ) from error
    return folder
