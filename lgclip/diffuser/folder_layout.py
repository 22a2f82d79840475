"""Matches folders to classes, and lists their images in order: the layout of the LGCLIP release."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lgclip.datasets.class_map import plain, split_number
from lgclip.datasets.image_files import images_below
from lgclip.datasets.image_tree import ImageTree
from lgclip.datasets.image_tree import class_folders as folders_below
from lgclip.types import TargetClass

_LEADING = re.compile(r"\d+")


def class_folders(root: Path, target_classes: Sequence[TargetClass]) -> list[Path]:
    """Returns the folder of each class.

    Matched in this order, each folder serving one class: the name exactly as in the data set; its
    index with its name (`007-name`); the name in another spelling (`_` for a space, other case); the name
    after any number (CUB's `001.Name`); its index only. Where two classes have the same name (ImageNet has
    two "missile"), only an index distinguishes them.

    Args:
        root: Parent of the folders.
        target_classes: The classes.

    Raises:
        ValueError: If a class has no folder, or more than one candidate.
    """
    free = {name: root / name for name in folders_below(root)[0]}
    # How many classes share a name, by each spelling in which names are compared.
    name_counts: dict[Callable[[str], str], Counter[str]] = {
        str: Counter(target_class.name for target_class in target_classes),
        plain: Counter(plain(target_class.name) for target_class in target_classes),
    }
    folders: dict[int, Path] = {}
    # All classes by the surest way, then what is left by the next. Class by class, a class "cat" could take the
    # folder "Cat" before a class "Cat" is processed.
    for of_folder, of_class, normalize in _MATCHING_RULES:
        folders_by_key: dict[object, list[str]] = {}
        for name in free:
            folders_by_key.setdefault(of_folder(name), []).append(name)
        claims: dict[int, list[str]] = {}
        for target_class in target_classes:
            if target_class.class_index not in folders:
                shared = name_counts[normalize][normalize(target_class.name)] > 1
                names = folders_by_key.get(of_class(target_class), [])
                claims[target_class.class_index] = [
                    name for name in names if _by_index(name, target_class) or not shared
                ]
        _check_claims(root, claims, {target_class.class_index: target_class.name for target_class in target_classes})
        folders |= {index: free.pop(names[0]) for index, names in claims.items() if names}
    lacking = [target_class for target_class in target_classes if target_class.class_index not in folders]
    if lacking:
        raise ValueError(_no_folder(root, lacking, name_counts[plain], free))
    return [folders[target_class.class_index] for target_class in target_classes]


def _by_index(name: str, target_class: TargetClass) -> bool:
    number, suffix = split_number(name)
    return number == target_class.class_index and suffix in ("", plain(target_class.name))


def _name_alone(target_class: TargetClass) -> str:
    return (
        plain(target_class.name) or f"/{target_class.class_index}"
    )  # a name of signs alone fits no folder but its own


_MATCHING_RULES: tuple[tuple[Callable[[str], object], Callable[[TargetClass], object], Callable[[str], str]], ...] = (
    (str, lambda target_class: target_class.name, str),
    (split_number, lambda target_class: (target_class.class_index, plain(target_class.name)), plain),
    (plain, _name_alone, plain),
    (lambda name: split_number(name)[1], _name_alone, plain),
    (split_number, lambda target_class: (target_class.class_index, ""), plain),
)
"""Criteria that match a folder to a class, the strictest first, each with the spelling of the name
that must be unique for it."""


def _check_claims(root: Path, claims: Mapping[int, Sequence[str]], names: Mapping[int, str]) -> None:
    for index, folders in claims.items():
        if len(folders) > 1:
            raise ValueError(
                f"diffuser.root={root}: folders {' and '.join(folders)} might both be class {index} "
                f"({names[index]!r}); keep one"
            )
    # By now each class claims one folder at most; here one folder may be claimed by several classes.
    for folder, count in Counter(folders[0] for folders in claims.values() if folders).items():
        if count > 1:
            claimants = [f"{index} ({names[index]!r})" for index, folders in claims.items() if folders == [folder]]
            raise ValueError(
                f"diffuser.root={root}: folder {folder} might be class {' and '.join(claimants)}; name folders by index"
            )


def _no_folder(root: Path, lacking: Sequence[TargetClass], twice: Mapping[str, int], free: Mapping[str, Path]) -> str:
    examples = ", ".join(f"{target_class.class_index} ({target_class.name!r})" for target_class in lacking[:5])
    message = f"diffuser.root={root}: no folder for {len(lacking)} classes, first {examples}"
    if any(twice[plain(target_class.name)] > 1 for target_class in lacking):
        message += "; classes that share a name need folders by index, such as 007 or 007-name"
    if free:
        message += f"; folders of no class: {', '.join(list(free)[:5])}"
    return message


def images_in(folder: Path, tree: ImageTree | None = None) -> list[Path]:
    """Returns the images of a class: by the number that their names begin with, then those without one by name.

    Args:
        folder: The folder.
        tree: Where to count what is left out; None logs it.

    Raises:
        ValueError: If two have the same number.
    """
    files = [folder.parent / path for path in images_below(folder.parent, folder.name, tree)]
    # By the number and not by the name, since "10_cat" sorts before "2_cat".
    numbered: dict[int, Path] = {}
    for file in files:
        if match := _LEADING.match(file.name):
            first = numbered.setdefault(int(match[0]), file)
            if first is not file:
                raise ValueError(f"{folder}: {first.name} and {file.name} have the same number; which comes first?")
    unnumbered = [file for file in files if not _LEADING.match(file.name)]
    return [numbered[number] for number in sorted(numbered)] + unnumbered
