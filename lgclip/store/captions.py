"""Stores captions of real images, one JSON file per batch, each written atomically."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgclip.runtime.regular_files import read_text
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store import remote
from lgclip.store.atomic import write_json
from lgclip.store.cost_log import COST_LOG
from lgclip.store.keys import content_key

log = logging.getLogger(__name__)


class CaptionStore:
    """Stores the captions of one source's images by one captioner.

    The text around a caption is not part of the key, so that another prompt format does not re-caption anything.

    Args:
        root: The store's folder.
        captioner: Inputs that identify the captioner.
        source: Inputs that identify the images.
    """

    def __init__(self, root: Path, captioner: Mapping[str, object], source: Mapping[str, object]) -> None:
        self._inputs = {"captioner": dict(captioner), "source": dict(source), "schema": STORE_SCHEMA}
        self.key = content_key(self._inputs)
        self._folder = root / "captions" / self.key
        self.cost_log = self._folder / COST_LOG
        self._seen: set[str] = set()
        self._captions: dict[str, str] = {}

    def refresh(self) -> None:
        """Reads what other processes have added."""
        remote.fetch(self._folder)
        for path in sorted(self._folder.glob("*.json")):
            if path.name in self._seen or path.name == "inputs.json":
                continue
            self._seen.add(path.name)
            try:
                captions = captions_in(json.loads(read_text(path)), path.stem)
            except FileNotFoundError:  # another process has deleted it since the folder was listed
                continue
            except (ValueError, RecursionError):
                log.warning("%s is damaged; the images that it lists are captioned again", path)
                continue
            # Two processes may have captioned one image with different words. The first that was read counts, in the
            # order of the file names, and what a process has used never changes under it.
            for image, caption in captions.items():
                self._captions.setdefault(image, caption)

    def get(self, image_id: str) -> str | None:
        """Returns the caption of an image as of the last `refresh`, possibly empty; None if there is none yet."""
        return self._captions.get(image_id)

    def add(self, captions: Mapping[str, str]) -> None:
        """Stores the captions of one batch, by image id."""
        if not captions:
            return
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)
        content = {"schema": STORE_SCHEMA, "captions": dict(captions)}
        # The name is a hash of the content: two processes that write the same batch write one file.
        name = f"{content_key(content)}.json"
        write_json(self._folder / name, content)
        # A damaged file of this name was skipped and is now replaced, so it has to be read.
        self._seen.discard(name)


def captions_in(content: Any, name: str) -> dict[str, str]:
    """Returns the captions in a file of the store, by image id.

    Args:
        content: Parsed content of the file.
        name: Its name without suffix.

    Raises:
        ValueError: If it is not in the format that a stage writes.
    """
    captions: Any = None
    if isinstance(content, dict):
        captions = content.get("captions")
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise ValueError("it holds no captions by image id")
    if content.get("schema") != STORE_SCHEMA:
        raise ValueError(f"it is of schema {content.get('schema')}, this package reads {STORE_SCHEMA}")
    if content_key(content) != name:
        raise ValueError("its name is not the key of its content")
    return captions
