"""Synthetic images, a PNG file each; every one is whole or absent."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lgclip.identity import key_of
from lgclip.ledger import LEDGER
from lgclip.whole import write_json, write_whole

log = logging.getLogger(__name__)


class ImageStore:
    """The images of one diffuser; `ab/abcd....fault.json` stands in place of one that could not be used.

    Args:
        root: The store's folder.
        inputs: What the diffuser is made of.
    """

    def __init__(self, root: Path, inputs: Mapping[str, object]) -> None:
        self._inputs = dict(inputs)
        self.key = key_of(inputs)
        self._folder = root / "images" / self.key
        self.ledger = self._folder / LEDGER

    def path(self, image_id: str) -> Path:
        """Where an image lies, or will lie."""
        return self._folder / image_id[:2] / f"{image_id}.png"

    def fault(self, image_id: str) -> str | None:
        """What was wrong with an image that could not be used; None if nothing is known of it."""
        try:
            return str(json.loads(self._marker(image_id).read_text(encoding="utf-8"))["fault"])
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, KeyError, TypeError):
            log.warning("%s is damaged; the image is drawn again", self._marker(image_id))
            return None

    def put_fault(self, image_id: str, fault: str, made_from: Mapping[str, object]) -> None:
        """Writes a marker in place of an image that could not be used; remove it to have it drawn again."""
        self._spell_out()
        write_json(self._marker(image_id), {"fault": fault, **made_from})

    def _marker(self, image_id: str) -> Path:
        return self.path(image_id).with_suffix(".fault.json")

    def _spell_out(self) -> None:
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)

    def put(self, image_id: str, pixels: UInt8[np.ndarray, "h w 3"], made_from: Mapping[str, object]) -> None:
        """Writes one image as PNG, with what it was made from in its text."""
        self._spell_out()
        about = PngInfo()
        about.add_itxt("lgclip", json.dumps(made_from, ensure_ascii=False))
        path = self.path(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=about)
