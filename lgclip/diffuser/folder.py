"""Images that were made elsewhere, in the folder layout of the LGCLIP release."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from lgclip.batch import Prompt, Subject
from lgclip.datasets.base import BadImageError
from lgclip.datasets.files import read_image
from lgclip.diffuser.base import ImageSource, Missing, Pictures
from lgclip.diffuser.faults import Fault, fault_of
from lgclip.diffuser.layout import class_folders, images_in
from lgclip.identity import NOT_AN_INPUT, SCHEMA, inputs_of, key_of
from lgclip.whole import write_whole

log = logging.getLogger(__name__)

READERS = 4
"""Threads that read files."""


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """Images that lie in `ROOT/CLASS/NUMBER_CLASS.jpg`; read where they are, never copied.

    Of each class the first prompts_per_class x images_per_prompt images are used, by the number that
    a file's name begins with. No prompt is needed, so no language model is asked.

    Args:
        root: The folder with a folder of images a class; see `layout.class_folders` for their names.

    Raises:
        ValueError: If there is no such folder.
    """

    needs_prompts: ClassVar[bool] = False

    root: str = field(metadata=NOT_AN_INPUT)  # an image's key is its content

    def __post_init__(self) -> None:
        if not self._folder.is_dir():
            raise ValueError(f"diffuser.root={self.root}: no such folder; it should hold one folder of images a class")

    @property
    def _folder(self) -> Path:
        return Path(self.root).expanduser().absolute()

    def inputs(self) -> dict[str, object]:
        return {"diffuser": inputs_of(self), "schema": SCHEMA}

    def stage(self, root: Path, subjects: Sequence[Subject], prompts: Sequence[Prompt], seed: int) -> "Found":
        """The images in the folder; the seed is of no matter.

        Raises:
            ValueError: If a class has no folder or too few images.
        """
        folders = class_folders(self._folder, subjects)
        inside = {subject.class_index: images_in(folder) for subject, folder in zip(subjects, folders, strict=True)}
        wanted = {subject.class_index: 0 for subject in subjects}
        files = []
        for prompt in prompts:
            place = wanted[prompt.class_index]
            wanted[prompt.class_index] += 1
            files += inside[prompt.class_index][place : place + 1]
        few = [subject for subject in subjects if len(inside[subject.class_index]) < wanted[subject.class_index]]
        if few:
            told = ", ".join(f"{s.class_index} ({s.name!r}) has {len(inside[s.class_index])}" for s in few[:5])
            most = max(wanted.values())
            raise ValueError(
                f"diffuser.root={self.root}: {len(few)} classes have fewer images than the {most} of "
                f"prompts_per_class x images_per_prompt: class {told}; ask for fewer or add images"
            )
        return Found(key_of(self.inputs()), root, subjects, prompts, files)


class Found:
    """Nothing is to be made here: the images are there.

    Args:
        key: What their features are kept under.
        root: The store's folder, where what is known of the images is kept.
        subjects: The classes.
        prompts: The images wanted.
        files: The file of each.
    """

    def __init__(
        self, key: str, root: Path, subjects: Sequence[Subject], prompts: Sequence[Prompt], files: Sequence[Path]
    ) -> None:
        self._key, self._subjects, self._prompts, self._files = key, subjects, prompts, list(files)
        self._known = root / "images" / key

    def missing(self) -> list[int]:
        return []

    def pictures(self) -> Pictures:
        with ThreadPoolExecutor(READERS) as readers:
            ids = list(readers.map(_content, self._files))
        faults = self._faults(ids)
        there = [at for at, name in enumerate(ids) if faults[name] is None]
        return Pictures(
            self._key,
            self._subjects,
            [self._prompts[at] for at in there],
            [ids[at] for at in there],
            [self._files[at] for at in there],
            [Missing(self._prompts[at], (fault,)) for at, name in enumerate(ids) if (fault := faults[name])],
        )

    def _faults(self, ids: Sequence[str]) -> dict[str, Fault | None]:
        """What is wrong with each image; every image is decoded for it once, and the finding kept."""
        path = self._known / f"{key_of({'ids': sorted(set(ids))})}.json"
        try:
            bad = json.loads(path.read_text(encoding="utf-8"))["faults"]
            return {name: Fault(bad[name]) if name in bad else None for name in ids}
        except (OSError, ValueError, KeyError, TypeError):
            faults = _checked(dict(zip(ids, self._files, strict=True)).items())
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            temporary.write_text(json.dumps({"faults": {name: fault for name, fault in faults.items() if fault}}))
        return faults


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return key_of({"content": hashlib.file_digest(opened, "sha256").hexdigest()})


def _checked(files: Iterable[tuple[str, Path]]) -> dict[str, Fault | None]:
    named = list(files)
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip([name for name, _ in named], readers.map(_fault, [file for _, file in named]), strict=True))


def _fault(file: Path) -> Fault | None:
    try:
        return fault_of(np.asarray(read_image(file)))
    except BadImageError as error:
        log.warning("%s cannot be read as an image (%s); it is left out of the prototypes", error.where, error.reason)
        return Fault.UNREADABLE
