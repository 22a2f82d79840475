"""Captions of real images, a JSON file a batch; every one is whole or absent."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgclip.identity import SCHEMA, key_of
from lgclip.ledger import LEDGER
from lgclip.whole import write_json

log = logging.getLogger(__name__)


class CaptionStore:
    """The captions of one source's images by one captioner.

    The words around a caption are not in the key, so that another form of the prompts captions nothing again.

    Args:
        root: The store's folder.
        captioner: What the captioner is made of.
        source: What the images are.
    """

    def __init__(self, root: Path, captioner: Mapping[str, object], source: Mapping[str, object]) -> None:
        self._inputs = {"captioner": dict(captioner), "source": dict(source), "schema": SCHEMA}
        self.key = key_of(self._inputs)
        self._folder = root / "captions" / self.key
        self.ledger = self._folder / LEDGER
        self._seen: set[str] = set()
        self._found: dict[str, str] = {}

    def refresh(self) -> None:
        """Reads what other processes have added."""
        for path in sorted(self._folder.glob("*.json")):
            if path.name in self._seen or path.name == "inputs.json":
                continue
            self._seen.add(path.name)
            try:
                captions = captions_in(json.loads(path.read_text(encoding="utf-8")), path.stem)
            except FileNotFoundError:  # taken away in the meantime
                continue
            except (ValueError, RecursionError):
                log.warning("%s is damaged; the images that it tells of are captioned again", path)
                continue
            self._found |= {image: caption for image, caption in captions.items() if image not in self._found}

    def get(self, image_id: str) -> str | None:
        """The caption of an image as of the last `refresh`, perhaps empty; None if there is none yet."""
        return self._found.get(image_id)

    def add(self, captions: Mapping[str, str]) -> None:
        """Stores the captions of one batch, by image id."""
        if not captions:
            return
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)
        content = {"schema": SCHEMA, "captions": dict(captions)}
        name = f"{key_of(content)}.json"
        write_json(self._folder / name, content)
        self._seen.discard(name)  # what was damaged under this name is read again


def captions_in(content: Any, name: str) -> dict[str, str]:
    """The captions in a file of the store, by image id.

    Args:
        content: What the file holds.
        name: Its name without suffix.

    Raises:
        ValueError: If it is not what a stage writes.
    """
    captions = content.get("captions") if isinstance(content, dict) else None
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise ValueError("it holds no captions by image id")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"it is of schema {content.get('schema')}, this package reads {SCHEMA}")
    if key_of(content) != name:
        raise ValueError("its name is not the key of its content")
    return captions
