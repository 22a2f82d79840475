"""Creates thumbnails for the page: synthetic images of each class, and confused classes."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from hydra.errors import InstantiationException
from PIL import Image

from lgclip.reporting.dashboard.feature_map import compute_feature_map
from lgclip.reporting.dashboard.rows import PAIRS
from lgclip.reporting.dashboard.schema import PromptImages, RunData
from lgclip.reporting.restore import RestoredRun, restore_run
from lgclip.reporting.run_folder import Run

SIDE = 80
"""Longest side of a thumbnail, in pixels."""

QUALITY = 70
"""Quality of lossy WebP, from 0 to 100."""

ROOM = 3_000_000
"""Maximum number of characters of all thumbnails of a page."""

ENTRIES = 40_000
"""Maximum number of gallery entries; shared images are stored once, but each entry takes some room too."""

POINTS = 40_000
"""Maximum number of points of all maps of features on a page."""

CHANGED = "the data set has changed since the run; only images that were evaluated are shown"

PER_PAIR = 3
"""Number of images of each kind next to a pair of classes."""


@dataclass
class Thumbnails:
    """Collects thumbnails, each once, up to a size limit.

    Attributes:
        room: Maximum number of characters.
        uris: The images as data URIs, by short keys.
        full: Whether one was left out because of the limit.
    """

    room: int
    uris: dict[str, str] = field(default_factory=dict)
    full: bool = False
    _keys: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, source: str, image_id: str, load: Callable[[], Image.Image]) -> list[str]:
        """Returns the key of an image; empty if there is no room for it.

        Args:
            source: Namespace of its id.
            image_id: Content key.
            load: Reads it.
        """
        # The source is part of the key: ids of real images are numbers, equal in two data sets.
        key = self._keys.get((source, image_id))
        # Once full, nothing is added, not even what is small enough: else the choice would depend on sizes. Images
        # that are on the page already still find their key.
        if key is None and not self.full:
            uri = data_uri(load())
            self.room -= len(uri)
            self.full = self.room < 0
            if not self.full:
                key = self._keys[source, image_id] = str(len(self.uris))
                self.uris[key] = uri
        if key is None:
            return []
        return [key]


def data_uri(image: Image.Image) -> str:
    """Returns an image of at most `SIDE` pixels a side as WebP; a smaller one keeps its size."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def illustrate(runs: Sequence[tuple[Run, RunData]], images: int) -> tuple[dict[str, str], list[str]]:
    """Adds images to the galleries and to pairs of confused classes.

    Images are added in rounds: of each run its next pair of classes and one more image of each class, so that
    the limit affects the last ones everywhere.

    Args:
        runs: Runs and their page data, the most important first.
        images: Maximum number of images of a class in a run's gallery.

    Returns:
        The images by key, and notes on what could not be shown.
    """
    thumbs = Thumbnails(ROOM)
    albums: list[_Album] = []
    # Runs by the reason why their images are missing: one note for a data set that is gone, not one for each run.
    missing: dict[str, list[str]] = {}
    for run, data in runs:
        # The page is useful without images, so missing files are a note, not an error.
        try:
            albums.append(_Album(run, data))
        except (ValueError, OSError, InstantiationException) as error:
            missing.setdefault(_reason(error), []).append(data["name"])
    entries = 0
    for turn in range(max(images, PAIRS)):
        for album in albums:
            album.pair(turn, thumbs)
            if turn < images and entries < ENTRIES:
                entries += album.row(turn, thumbs)
    notes = [f"Pictures of {_runs(names)} are not shown: {reason}" for reason, names in missing.items()]
    notes += _lost_notes(albums)
    notes += _add_feature_maps(albums)
    if thumbs.full or entries >= ENTRIES:
        notes.append(f"Some pictures are left out: the page holds {len(thumbs.uris)}, the first of each run and class.")
    return thumbs.uris, notes


def _runs(names: Sequence[str]) -> str:
    named = "; ".join(names[:3])
    if len(names) > 3:
        named += "; ..."
    return f"{len(names)} run{'s' * (len(names) > 1)} ({named})"


def _lost_notes(albums: Sequence["_Album"]) -> list[str]:
    """Returns a note on the images that could not be read, with the first reason; each image counts once."""
    lost: dict[tuple[str, str], str] = {}
    names: dict[str, None] = {}
    for album in albums:
        lost |= album.lost
        if album.lost:
            names[album.name] = None
    notes = [f"Pictures of test images of {album.name} may be missing: {CHANGED}" for album in albums if album.changed]
    if lost:
        count = f"{len(lost)} picture{'s' * (len(lost) > 1)}"
        notes.append(f"{count} of {_runs(list(names))} could not be read: {next(iter(lost.values()))}")
    return notes


def _add_feature_maps(albums: Sequence["_Album"]) -> list[str]:
    """Adds the maps of features, up to a number of points on the page; returns notes on those that are left out."""
    points_left = POINTS
    left_out: dict[str, list[str]] = {}
    for album in albums:
        if points_left <= 0:
            left_out.setdefault("the page holds those of the first runs", []).append(album.name)
            continue
        try:
            points_left -= album.add_feature_map()
        except (ValueError, OSError) as error:
            left_out.setdefault(_reason(error), []).append(album.name)
    return [f"Maps of features of {_runs(names)} are not shown: {reason}" for reason, names in left_out.items()]


def _reason(error: Exception) -> str:
    # Hydra wraps the error of a constructor in one that names the class, which means nothing to a reader of the page.
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return str(error.__cause__)
    return str(error)


class _Album:
    """Provides a run's images by class, and their positions on the page.

    Args:
        run: The run.
        data: Its page data; its galleries and pairs of classes are filled in.

    Raises:
        ValueError: If the run's inputs do not exist any more, or have changed.
    """

    def __init__(self, run: Run, data: RunData) -> None:
        restored = restore_run(run)
        self.name = data["name"]
        self._predictions = run.predictions
        self._data = data
        self.lost: dict[tuple[str, str], str] = {}
        self._run = run
        self._restored = restored
        self._fingerprint = run.result.dataset.fingerprint
        self.changed = restored.dataset.fingerprint != self._fingerprint
        self._dataset = restored.dataset
        self._places_now = _places_now(run, restored) if self.changed else {}
        self._synthetic_images = restored.synthetic_images
        self._places: list[list[int]] = [[] for _ in restored.dataset.class_names]
        prompts = restored.synthetic_images.prompts if restored.synthetic_images else ()
        for place, prompt in enumerate(prompts):
            self._places[prompt.class_index].append(place)
        data["gallery"] = [[] for _ in self._places]

    def pair(self, index: int, thumbs: Thumbnails) -> None:
        """Adds images to a pair of confused classes: the most confident mistakes, and synthetic images of both."""
        if index >= len(self._data["confusions"]):
            return
        pair = self._data["confusions"][index]
        true = pair["true"]
        predicted = pair["predicted"]
        photos = [self._photo(place, thumbs) for place in self._mistaken(true, predicted)]
        # Each image gives one key, or none if the room is used up.
        pair["images"] = list(chain.from_iterable(photos))
        pair["of_true"] = self._first_generated(true, thumbs)
        pair["of_predicted"] = self._first_generated(predicted, thumbs)

    def row(self, index: int, thumbs: Thumbnails) -> int:
        """Adds one more image of each class to the gallery; returns how many fit."""
        added = 0
        for prompt_images, places in zip(self._data["gallery"], self._places, strict=True):
            if index >= len(places):
                continue
            for key in self._generated_image(places[index], thumbs):
                self._hang(prompt_images, places[index], key)
                added += 1
        return added

    def _hang(self, prompt_images: list[PromptImages], index: int, key: str) -> None:
        assert self._synthetic_images is not None
        text = self._synthetic_images.prompts[index].text
        if prompt_images and prompt_images[-1]["prompt"] == text:  # the images of a prompt follow each other
            prompt_images[-1]["images"].append(key)
        else:
            prompt_images.append(PromptImages(prompt=text, images=[key]))

    def _mistaken(self, true: int, predicted: int) -> list[int]:
        places = np.flatnonzero((self._predictions.label == true) & (self._predictions.prediction == predicted))
        # A run without a confidence has NaN there, which would sort in no order; with 0 the images keep theirs.
        surest = np.argsort(-np.nan_to_num(self._predictions.confidence[places]), kind="stable")
        return places[surest[:PER_PAIR]].tolist()

    def add_feature_map(self) -> int:
        """Adds the map of the run's features; returns its number of points.

        Raises:
            ValueError: If features are not in the store any more.
        """
        # The labels of a map are those of the predictions, which need the data set as it was.
        if self.changed:
            return 0
        self._data["feature_map"] = compute_feature_map(self._run, self._restored)
        return len(self._data["feature_map"]["x"]) if self._data["feature_map"] else 0

    def _photo(self, index: int, thumbs: Thumbnails) -> list[str]:
        place = index
        if self.changed:
            if index not in self._places_now:
                return []
            place = self._places_now[index]
        return self._add(thumbs, self._fingerprint, str(index), lambda: self._dataset.image(place))

    def _add(self, thumbs: Thumbnails, source: str, image_id: str, load: Callable[[], Image.Image]) -> list[str]:
        """Returns the key of an image on the page; empty if there is no room, or the image cannot be read."""
        if (source, image_id) in self.lost:
            return []
        try:
            return thumbs.add(source, image_id, load)
        except (ValueError, OSError) as error:
            # One lost file costs its own picture: the others of the run are shown all the same.
            self.lost[source, image_id] = _reason(error)
            return []

    def _first_generated(self, class_index: int, thumbs: Thumbnails) -> list[str]:
        synthetic_images = [self._generated_image(place, thumbs) for place in self._places[class_index][:PER_PAIR]]
        return list(chain.from_iterable(synthetic_images))

    def _generated_image(self, index: int, thumbs: Thumbnails) -> list[str]:
        synthetic_images = self._synthetic_images
        assert synthetic_images is not None
        if synthetic_images.paths[index] is None:
            return []  # it was not stored, which is no loss
        return self._add(
            thumbs, synthetic_images.key, synthetic_images.ids[index], lambda: synthetic_images.image(index)
        )


def _places_now(run: Run, restored: RestoredRun) -> dict[int, int]:
    """Returns where evaluated images are in a data set that has changed since, by their index in the evaluation.

    A class with as many images as were evaluated has them in the same order; of these, an image counts if its features
    are in the store, since a store identifies an image by its content: an image that was never evaluated must not be
    shown as a mistake of this run.
    """
    dataset = restored.dataset
    real = restored.streams["real"]
    unknown = set(real.store.missing(real.ids, real.views))
    evaluated = run.predictions.label
    current = np.array(dataset.labels)
    places: dict[int, int] = {}
    for class_index in np.unique(evaluated):
        before = np.flatnonzero(evaluated == class_index).tolist()
        now = np.flatnonzero(current == class_index).tolist()
        if len(before) == len(now):
            places |= {index: place for index, place in zip(before, now, strict=True) if place not in unknown}
    return places
