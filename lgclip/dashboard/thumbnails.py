"""Small pictures for the page: what was drawn for each class, and what was mistaken for what."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from hydra.errors import InstantiationException
from PIL import Image

from lgclip.dashboard.rows import PAIRS
from lgclip.dashboard.shape import Drawn, RunData
from lgclip.identity import key_of
from lgclip.reopen import reopen
from lgclip.runs import Run

SIDE = 80
"""Longest side of a small picture, in pixels."""

QUALITY = 70
"""Of lossy WebP, from 0 to 100."""

ROOM = 3_000_000
"""Characters that all small pictures of a page take at most."""

ENTRIES = 40_000
"""Places in galleries at most; pictures that runs share cost room once, but each place of theirs some too."""

PER_PAIR = 3
"""Pictures of each kind beside a pair of classes."""


@dataclass
class Thumbnails:
    """Small pictures, each once, until their room is full.

    Attributes:
        room: Characters that they may take.
        uris: The pictures as data URIs, by short keys.
        full: Whether one was left out for want of room.
    """

    room: int
    uris: dict[str, str] = field(default_factory=dict)
    full: bool = False
    _keys: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, source: str, image_id: str, load: Callable[[], Image.Image]) -> list[str]:
        """The key of a picture; none if there is no room for it.

        Args:
            source: What its id belongs to.
            image_id: Content key.
            load: Reads it.
        """
        key = self._keys.get((source, image_id))
        if key is None and not self.full:
            uri = data_uri(load())
            self.room -= len(uri)
            self.full = self.room < 0
            if not self.full:
                key = self._keys[source, image_id] = str(len(self.uris))
                self.uris[key] = uri
        return [] if key is None else [key]


def data_uri(picture: Image.Image) -> str:
    """A picture of at most `SIDE` pixels a side as WebP; a smaller one keeps its size."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    small.save(held, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(held.getvalue()).decode()}"


def illustrate(shown: Sequence[tuple[Run, RunData]], images: int) -> tuple[dict[str, str], list[str]]:
    """Fills in the galleries and the pictures beside pairs of classes.

    Pictures are added in rounds: of each run its next pair of classes and one more picture of each class, so that
    what is left out for want of room is what comes last everywhere.

    Args:
        shown: Runs, those that matter most first, and what the page says of each.
        images: Pictures of a class in a run's gallery at most.

    Returns:
        The pictures by key, and notes on what could not be shown.
    """
    thumbs = Thumbnails(ROOM)
    albums: list[_Album] = []
    gone: dict[str, list[str]] = {}
    for run, data in shown:
        try:
            albums.append(_Album(run, data))
        except (ValueError, OSError, InstantiationException) as error:
            gone.setdefault(_reason(error), []).append(data["name"])
    entries = 0
    for at in range(max(images, PAIRS)):
        for album in list(albums):
            try:
                album.pair(at, thumbs)
                entries += album.row(at, thumbs) if at < images and entries < ENTRIES else 0
            except (ValueError, OSError) as error:
                gone.setdefault(_reason(error), []).append(album.name)
                albums.remove(album)
    notes = []
    for reason, names in gone.items():
        told = "; ".join(names[:3]) + ("; ..." if len(names) > 3 else "")
        notes.append(f"Pictures of {len(names)} runs ({told}) are not shown, or not all of them: {reason}")
    if thumbs.full or entries >= ENTRIES:
        notes.append(f"Some pictures are left out: the page holds {len(thumbs.uris)}, the first of each run and class.")
    return thumbs.uris, notes


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error) if isinstance(error, InstantiationException) else str(error)


class _Album:
    """A run's pictures by class, and where they go on the page.

    Args:
        run: The run.
        data: What the page says of it; its galleries and pairs of classes are filled in.

    Raises:
        ValueError: If what the run worked with is not there any more, or is something else now.
    """

    def __init__(self, run: Run, data: RunData) -> None:
        opened = reopen(run)
        self.name = data["name"]
        self._judged, self._data = run.predictions, data
        if opened.dataset.labels != tuple(self._judged.label.tolist()):
            raise ValueError("the data set's images are not those that were judged")
        self._dataset, self._drawing = opened.dataset, opened.drawing
        self._source = key_of(opened.dataset.source())
        self._places: list[list[int]] = [[] for _ in opened.dataset.class_names]
        for at, prompt in enumerate(opened.drawing.prompts if opened.drawing else ()):
            self._places[prompt.class_index].append(at)
        data["gallery"] = [[] for _ in self._places]

    def pair(self, at: int, thumbs: Thumbnails) -> None:
        """Pictures beside a pair of classes: the mistakes that the run was surest of, and what was drawn of both."""
        if at >= len(self._data["confusions"]):
            return
        pair = self._data["confusions"][at]
        true, predicted = pair["true"], pair["predicted"]
        pair["images"] = [key for i in self._mistaken(true, predicted) for key in self._photo(i, thumbs)]
        pair["of_true"] = [key for i in self._places[true][:PER_PAIR] for key in self._drawn(i, thumbs)]
        pair["of_predicted"] = [key for i in self._places[predicted][:PER_PAIR] for key in self._drawn(i, thumbs)]

    def row(self, at: int, thumbs: Thumbnails) -> int:
        """One more picture of each class in the gallery; returns how many found room."""
        added = 0
        for drawn, places in zip(self._data["gallery"], self._places, strict=True):
            for key in self._drawn(places[at], thumbs) if at < len(places) else ():
                self._hang(drawn, places[at], key)
                added += 1
        return added

    def _hang(self, drawn: list[Drawn], at: int, key: str) -> None:
        assert self._drawing is not None
        text = self._drawing.prompts[at].text
        if drawn and drawn[-1]["prompt"] == text:  # the images of a prompt follow each other
            drawn[-1]["images"].append(key)
        else:
            drawn.append(Drawn(prompt=text, images=[key]))

    def _mistaken(self, true: int, predicted: int) -> list[int]:
        places = np.flatnonzero((self._judged.label == true) & (self._judged.prediction == predicted))
        surest = np.argsort(-np.nan_to_num(self._judged.confidence[places]), kind="stable")
        return places[surest[:PER_PAIR]].tolist()

    def _photo(self, at: int, thumbs: Thumbnails) -> list[str]:
        return thumbs.add(self._source, str(self._dataset.places[at]), lambda: self._dataset.image(at))

    def _drawn(self, at: int, thumbs: Thumbnails) -> list[str]:
        drawing = self._drawing
        assert drawing is not None
        return thumbs.add(drawing.key, drawing.ids[at], lambda: drawing.image(at))
