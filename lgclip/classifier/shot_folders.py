"""Finds the real images of each class in a folder with a folder per class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lgclip.datasets.image_tree import list_images


def images_by_class(folder: Path, class_names: Sequence[str]) -> Mapping[str, list[Path]]:
    """Returns the image files of each class that has a folder.

    Args:
        folder: Folder with a folder of images per class, named as the class; `_` is read as a space where no class has
            one. Not every class needs a folder.
        class_names: The class names.

    Raises:
        ValueError: If the folder is missing, a folder in it is no class, or there is no image.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; it should hold a folder of images per class")
    by_name = {name.casefold(): name for name in class_names}
    images: dict[str, list[Path]] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        name = by_name.get(inner.name.casefold()) or by_name.get(inner.name.replace("_", " ").casefold())
        if name is None:
            listed = ", ".join(map(repr, class_names[:6]))
            raise ValueError(f"{inner}: no class {inner.name!r}; name the folders as the classes: {listed}")
        tree = list_images(inner, "", recursive=True)
        tree.report(inner)
        if tree.files:
            images.setdefault(name, []).extend(inner / file for file in tree.files)
    if not images:
        raise ValueError(f"{folder}: no image in it; it should hold a folder of images per class, named as the class")
    return images
