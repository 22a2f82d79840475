"""Holds the state of one browser tab and its buttons' actions; needs no Gradio, so that tests need no page."""

import logging
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lgclip.classifier.explain import expectations
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.tables import prediction_rows, write_table
from lgclip.cli.studio.photographs import TOP, ClassImages, Photo, images_of_classes, predict_photos
from lgclip.datasets.names import parse_class_names
from lgclip.runtime.progress import Progress, observed

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

MAX_NAMES = 200
MAX_PHOTOS = 100
_WHERE = "names"
_INTERNAL = "internal error; the terminal that runs lgclip studio has the details"

DOWNLOADS = {
    "predictions": "predictions.csv",
    "classifier": "classifier.zip",
    "safetensors": "classifier.safetensors",
    "onnx": "classifier.onnx",
}
"""Files that a session writes, by their kind."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

# Hydra and Lightning hold state of the process, so that two builds at once would disturb each other.
_build_lock = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """Bounds what a page may send.

    Attributes:
        upload_bytes: Maximum size of a photograph.
        photos: Maximum number of photographs at once.
        names: Maximum number of classes.
    """

    upload_bytes: int = 20_000_000
    photos: int = MAX_PHOTOS
    names: int = MAX_NAMES


class Session:
    """Builds, changes and uses the classifier of one tab.

    Args:
        folder: Folder for its files; made when the first one is written.
        overrides: Overrides as of `lgclip build`.
        limits: What a page may send.
        classifier: Classifier to start with; None starts with nothing.

    Attributes:
        classifier: The classifier; None before one is built.
        photos: The photographs that were classified last.
        marked: Ids of the synthetic images to drop.
        revision: Number of the classifier's state; 0 before one is built.
    """

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str] = (),
        limits: Limits | None = None,
        classifier: ImageClassifier | None = None,
    ) -> None:
        self.classifier = classifier
        self.photos: tuple[Photo, ...] = ()
        self.marked: tuple[str, ...] = ()
        self.revision = 0 if classifier is None else 1
        self._folder = folder
        self._overrides = tuple(overrides)
        self._limits = limits or Limits()
        self._busy = threading.Lock()

    # ------------------------------------------------------------------------------------------------------- classes

    def build(self, text: str) -> Iterator[str]:
        """Builds a classifier and yields the progress so far; the last text describes the classifier.

        Args:
            text: One class name per line, or `NAME<TAB>DESCRIPTION`.

        Raises:
            ValueError: If a name is wrong, there are too few or too many, or another action is running.
        """
        described = self._names(text, existing=0, least=2)

        def work() -> str:
            from lgclip.api import build

            self._adopt(build(described, overrides=self._overrides))
            self.photos = ()
            assert self.classifier is not None
            return f"built {len(described)} classes from {len(self.classifier.image_ids)} synthetic images"

        yield from self._with_progress(work)

    def add(self, text: str) -> Iterator[str]:
        """Adds classes and yields the progress so far.

        Args:
            text: As in `build`.

        Raises:
            ValueError: If nothing is built, a name exists already, or another action is running.
        """
        changed = self._copy()
        described = self._names(text, existing=len(changed.classes), least=1)

        def work() -> str:
            changed.add(described)
            self._adopt(changed)
            self._classify_again()
            return f"added {len(described)} classes, now {len(changed.classes)}"

        yield from self._with_progress(work)

    def class_names(self) -> tuple[str, ...]:
        """Returns the name of each class; none before a classifier is built."""
        return () if self.classifier is None else self.classifier.class_names

    def expectations(self) -> str:
        """Returns a line each about expected accuracy, confusable classes, probabilities and rejection."""
        if self.classifier is None:
            return ""
        return "\n".join(expectations(self.classifier))

    # --------------------------------------------------------------------------------------------- synthetic images

    def class_images(self) -> list[ClassImages]:
        """Returns the synthetic images of each class."""
        return [] if self.classifier is None else images_of_classes(self.classifier)

    def toggle(self, image_id: str) -> None:
        """Marks an image to be dropped, or takes the mark off.

        Raises:
            ValueError: If the classifier has no such image.
        """
        if self.classifier is None or image_id not in self.classifier.image_ids:
            raise ValueError("this image is no longer part of the classifier")
        if image_id in self.marked:
            self.marked = tuple(marked_id for marked_id in self.marked if marked_id != image_id)
        else:
            self.marked = (*self.marked, image_id)

    def drop_marked(self) -> str:
        """Removes the marked images permanently.

        Raises:
            ValueError: If none is marked, or a class would have none left.
        """
        with self._exclusive():
            if not self.marked:
                raise ValueError("no image is marked; click the images that do not show their class")
            changed = self._copy()
            count = len(self.marked)
            changed.drop(self.marked)
            self._adopt(changed)
            self._classify_again()
        return f"dropped {count} images, {len(changed.image_ids)} remain"

    # ------------------------------------------------------------------------------------------------- photographs

    def classify(self, files: Sequence[Path]) -> str:
        """Classifies photographs, in place of those before.

        Args:
            files: Uploaded files, which are copied to the session's folder.

        Raises:
            ValueError: If nothing is built, or there are too many files or a file is too large.
        """
        with self._exclusive():
            self._built()
            self._check_files(files)
            folder = self._make_folder("photos")
            shutil.rmtree(folder)
            folder.mkdir()
            copies: list[tuple[str, Path]] = []
            for number, file in enumerate(files):
                # No part of a stranger's file name gets into a path.
                copy = folder / f"photo_{number}"
                shutil.copyfile(file, copy)
                copies.append((file.name, copy))
            self._predict(copies)
        unreadable = sum(photo.thumbnail is None for photo in self.photos)
        more = f", {unreadable} of them cannot be read" if unreadable else ""
        return f"{len(self.photos)} photographs{more}"

    def correct(self, place: int, name: str) -> str:
        """Mixes a photograph into the prototype of its true class.

        Args:
            place: Index of the photograph.
            name: The true class.

        Raises:
            ValueError: If there is no such photograph or class, or the photograph was mixed in already.
        """
        with self._exclusive():
            changed = self._copy()
            if not 0 <= place < len(self.photos):
                raise ValueError("choose a photograph first")
            photo = self.photos[place]
            if photo.thumbnail is None:
                raise ValueError(f"{photo.name} cannot be read as an image, so that it is no example of a class")
            changed.index_of(name)
            changed.add_shots({name: [photo.path]})
            self._adopt(changed)
            self._classify_again()
        return f"{photo.name} is an example of {name} now; the photographs were classified again"

    def details(self, place: int) -> str:
        """Returns the prediction for a photograph, each number with its meaning."""
        if not 0 <= place < len(self.photos):
            return ""
        photo = self.photos[place]
        prediction = photo.prediction
        if prediction.label is None:
            return f"{photo.name} {photo.caption}"
        ranked = ", ".join(f"{name} {100 * score:.1f}%" for name, score in prediction.top)
        lines = [
            f"{photo.name}: {photo.caption}",
            f"probabilities: {ranked}; of all classes they add up to 100%, also if the image shows none of them",
        ]
        if prediction.rejected:
            lines.append("none of these: the image resembles no class enough, so that its label means little")
        if photo.similar:
            nearest = photo.similar[0]
            lines.append(
                f"most similar synthetic image: one of {nearest.name}, similarity {nearest.similarity:.2f}; 1 is an "
                "image with the same features, values of unrelated images depend on the encoder"
            )
        return "\n".join(lines)

    # --------------------------------------------------------------------------------------------------------- files

    def write(self, kind: str) -> Path:
        """Writes a file to download.

        Args:
            kind: A key of `DOWNLOADS`.

        Raises:
            ValueError: If nothing is built, no photograph was classified, or a package is missing.
        """
        if kind not in DOWNLOADS:
            raise ValueError(f"file {kind!r}: choose {', '.join(DOWNLOADS)}")
        with self._exclusive():
            classifier = self._built()
            path = self._make_folder("downloads") / DOWNLOADS[kind]
            if kind == "predictions":
                self._write_predictions(path)
            elif kind == "classifier":
                classifier.save(path)
            else:
                classifier.export(path)
        return path

    def close(self) -> None:
        """Removes its files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # ----------------------------------------------------------------------------------------------------- internals

    def _write_predictions(self, path: Path) -> None:
        if not self.photos:
            raise ValueError("there are no predictions yet; classify photographs first")
        # The table names the user's files and not the copies.
        predictions = [replace(photo.prediction, path=photo.name) for photo in self.photos]
        top = min(TOP, len(self.class_names()))
        write_table(path, prediction_rows(predictions, top), "csv", top)

    def _names(self, text: str, *, existing: int, least: int) -> Mapping[str, str]:
        from lgclip.datasets.names import ClassNames

        described = parse_class_names(text, _WHERE)
        total = existing + len(described)
        if total > self._limits.names:
            raise ValueError(
                f"{total} classes; this page takes {self._limits.names} at most, use lgclip build for more"
            )
        ClassNames(described, least=least)
        return described

    def _check_files(self, files: Sequence[Path]) -> None:
        if not files:
            raise ValueError("no photograph; choose files, or drop them on the field")
        if len(files) > self._limits.photos:
            raise ValueError(f"{len(files)} files; at most {self._limits.photos} at once, use lgclip classify for more")
        for file in files:
            size = file.stat().st_size
            if size > self._limits.upload_bytes:
                raise ValueError(
                    f"{file.name}: {size / 1e6:.1f} MB; a photograph may have {self._limits.upload_bytes / 1e6:g} MB, "
                    "see --max-upload"
                )

    def _built(self) -> ImageClassifier:
        if self.classifier is None:
            raise ValueError("there is no classifier yet; type class names and press Build")
        return self.classifier

    def _copy(self) -> ImageClassifier:
        """Returns a copy to change: a change that fails leaves the classifier as it is, since no value is shared."""
        return replace(self._built())

    def _adopt(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier
        self.marked = ()
        self.revision += 1

    def _classify_again(self) -> None:
        if self.photos:
            self._predict([(photo.name, photo.path) for photo in self.photos])

    def _predict(self, copies: Sequence[tuple[str, Path]]) -> None:
        self.photos = predict_photos(self._built(), copies)

    def _make_folder(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._start()
        try:
            yield
        finally:
            self._busy.release()

    def _start(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise ValueError("the classifier is being built or changed; wait until that is done")

    def _with_progress(self, work: Callable[[], str]) -> Iterator[str]:
        """Runs `work` in a thread, and yields its stages with their counts while it runs."""
        self._start()
        messages: queue.Queue[str | Exception | None] = queue.Queue()
        thread = threading.Thread(target=self._work, args=(work, messages), daemon=True)
        thread.start()
        while True:
            message = messages.get()
            text = ""
            # Only the latest state is worth a redraw of the page.
            while isinstance(message, str):
                text = message
                if messages.empty():
                    break
                message = messages.get()
            if text:
                yield text
            if isinstance(message, Exception):
                raise message
            if message is None:
                return

    def _work(self, work: Callable[[], str], messages: "queue.Queue[str | Exception | None]") -> None:
        stages: dict[int, tuple[Progress, str]] = {}

        def listen(progress: Progress) -> None:
            line = f"{progress.title}: {progress.count} of {progress.total}"
            # The object is kept, so that its id stays its own.
            stages[id(progress)] = (progress, line)
            messages.put("\n".join(text for _, text in stages.values()))

        last: Exception | None = None
        try:
            messages.put("waiting for another build" if _build_lock.locked() else "starting")
            with _build_lock, observed(listen):
                text = work()
            messages.put("\n".join([*(line for _, line in stages.values()), text]))
        except Exception as error:
            last = error
        finally:
            # Here and not in the generator: a closed tab ends that one while the thread still works.
            self._busy.release()
            messages.put(last)


def error_message(error: Exception) -> str:
    """Returns the text that a page shows of an error: the message of a mistake, and nothing of the code."""
    if isinstance(error, ValueError | OSError):
        return str(error)
    log.error("unexpected error", exc_info=error)
    return _INTERNAL


def available_downloads() -> dict[str, str]:
    """Returns the kinds of files whose packages are installed."""
    has_onnx = all(find_spec(package) is not None for package in _ONNX_PACKAGES)
    return {kind: name for kind, name in DOWNLOADS.items() if kind != "onnx" or has_onnx}
