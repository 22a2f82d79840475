"""Provides existing images in the folder layout of the LGCLIP release."""

import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from lgclip.datasets.base import BadImageError
from lgclip.datasets.content_ids import content_id
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.image_tree import ImageTree
from lgclip.diffuser.base import ImageCollection, Missing, SyntheticImages
from lgclip.diffuser.folder_layout import class_folders, images_in
from lgclip.diffuser.image_checks import fault_of
from lgclip.runtime.regular_files import read_text
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.atomic import atomic_write
from lgclip.store.checksums import is_intact, with_checksum
from lgclip.store.keys import NOT_AN_INPUT, content_key, digest_of, key_inputs
from lgclip.types import Fault, Prompt, TargetClass

log = logging.getLogger(__name__)

READERS = 4
"""Threads that read files."""


@dataclass(frozen=True)
class ImageFolder(ImageCollection):
    """Provides images in `ROOT/CLASS/NUMBER_CLASS.jpg`; read in place, never copied.

    Of each class the first prompts_per_class x images_per_prompt images are used, by the number that
    a file's name begins with. No prompt is needed, so no language model runs.

    Args:
        root: Folder with one subfolder of images per class; see `folder_layout.class_folders` for their names.

    Raises:
        ValueError: If there is no such folder.
    """

    key_name: ClassVar[str] = "ImageFolder"
    images_from: ClassVar[str] = "folder"
    needs_prompts: ClassVar[bool] = False

    root: str = field(metadata=NOT_AN_INPUT)  # an image's key is its content

    def __post_init__(self) -> None:
        if not self._folder.is_dir():
            raise ValueError(f"diffuser.root={self.root}: no such folder; it needs one folder of images per class")

    @property
    def _folder(self) -> Path:
        return Path(self.root).expanduser().absolute()

    def inputs(self) -> dict[str, object]:
        return {"diffuser": key_inputs(self), "schema": STORE_SCHEMA}

    def stage(
        self, root: Path, target_classes: Sequence[TargetClass], prompts: Sequence[Prompt], seed: int
    ) -> "FolderImages":
        """Returns the images in the folder; ignores the seed.

        Raises:
            ValueError: If a class has no folder or too few images.
        """
        folders = class_folders(self._folder, target_classes)
        tree = ImageTree()
        inside = {
            target_class.class_index: images_in(folder, tree)
            for target_class, folder in zip(target_classes, folders, strict=True)
        }
        tree.report(self._folder)
        counts = {target_class.class_index: 0 for target_class in target_classes}
        files = []
        for prompt in prompts:
            place = counts[prompt.class_index]
            counts[prompt.class_index] += 1
            # A slice, which is empty behind the end: all classes are gone through before the error below.
            files += inside[prompt.class_index][place : place + 1]
        few = [
            target_class
            for target_class in target_classes
            if len(inside[target_class.class_index]) < counts[target_class.class_index]
        ]
        if few:
            examples = ", ".join(f"{s.class_index} ({s.name!r}) has {len(inside[s.class_index])}" for s in few[:5])
            most = max(counts.values())
            raise ValueError(
                f"diffuser.root={self.root}: {len(few)} classes have fewer images than the {most} of "
                f"prompts_per_class x images_per_prompt: class {examples}; ask for fewer or add images"
            )
        return FolderImages(content_key(self.inputs()), root, target_classes, prompts, files)


class FolderImages:
    """Provides images that exist already, so that nothing has to be computed.

    Args:
        key: Store key of their features.
        root: The store's folder, where faults of the images are recorded.
        target_classes: The classes.
        prompts: The requested images.
        files: File of each.
    """

    def __init__(
        self,
        key: str,
        root: Path,
        target_classes: Sequence[TargetClass],
        prompts: Sequence[Prompt],
        files: Sequence[Path],
    ) -> None:
        self._key = key
        self._subjects = target_classes
        self._prompts = prompts
        self._files = list(files)
        self._cache_folder = root / "images" / key

    def missing(self) -> list[int]:
        return []

    def synthetic_images(self) -> SyntheticImages:
        with ThreadPoolExecutor(READERS) as readers:
            ids = list(readers.map(_content, self._files))
        faults = self._faults(ids)
        # A faulty image is not replaced by the next one of the folder: which images a run uses must not depend on
        # how many of them are damaged, and the result lists what was left out.
        usable = [index for index, name in enumerate(ids) if faults[name] is None]
        missing = [Missing(self._prompts[index], (fault,)) for index, name in enumerate(ids) if (fault := faults[name])]
        return SyntheticImages(
            self._key,
            self._subjects,
            [self._prompts[index] for index in usable],
            [ids[index] for index in usable],
            [self._files[index] for index in usable],
            missing,
        )

    def _faults(self, ids: Sequence[str]) -> dict[str, Fault | None]:
        """Returns the fault of each image; every image is decoded once, and the result stored."""
        # Named by the content of the images, so that the finding holds for a copy of the folder, and an image that
        # was changed is checked again.
        path = self._cache_folder / f"{content_key({'ids': sorted(set(ids))})}.json"
        try:
            content = json.loads(read_text(path))
            if not is_intact(content):
                raise ValueError("its checksum is wrong")
            bad = content["faults"]
            cached_faults: dict[str, Fault | None] = dict.fromkeys(ids)
            cached_faults |= {name: Fault(bad[name]) for name in ids if name in bad}
            return cached_faults
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # A dict, since files of equal content need to be decoded only once.
            faults = _checked(dict(zip(ids, self._files, strict=True)).items())
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            content = with_checksum({"faults": {name: fault for name, fault in faults.items() if fault}})
            temporary.write_text(json.dumps(content))
        return faults


def _content(file: Path) -> str:
    return content_id(digest_of(file))


def _checked(files: Iterable[tuple[str, Path]]) -> dict[str, Fault | None]:
    by_name = dict(files)
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(by_name, readers.map(_fault, by_name.values()), strict=True))


def _fault(file: Path) -> Fault | None:
    try:
        return fault_of(np.asarray(read_image(file)))
    except BadImageError as error:
        log.warning("%s cannot be read as an image (%s); it is left out of the prototypes", error.where, error.reason)
        return Fault.UNREADABLE
