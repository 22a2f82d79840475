"""Which folder holds which class, and its images in order: the layout of the LGCLIP release."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lgclip.batch import Subject
from lgclip.datasets.files import IMAGE_SUFFIXES

_NUMBERED = re.compile(r"(\d+)(?:[-_. ]+(.*))?", re.DOTALL)
_LEADING = re.compile(r"\d+")


def plain(name: str) -> str:
    """A name as it is compared: no case, and one space for whatever is neither letter nor digit."""
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


def class_folders(root: Path, subjects: Sequence[Subject]) -> list[Path]:
    """The folder of each class.

    Looked for in turn, each folder serving one class: the name exactly as the data set shows it; its
    index with its name (`007-name`); the name in other spelling (`_` for a space, other case); the name
    behind any number (CUB's `001.Name`); its index alone. Where two classes have one name (ImageNet has
    two "missile"), only an index tells them apart.

    Args:
        root: Where the folders are.
        subjects: The classes.

    Raises:
        ValueError: If a class has no folder, or more than one that might be its own.
    """
    free = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    alike: dict[Callable[[str], str], Counter[str]] = {
        spelt: Counter(spelt(subject.name) for subject in subjects) for spelt in (str, plain)
    }
    found: dict[int, Path] = {}
    for of_folder, of_class, spelt in _WAYS:
        known: dict[object, list[str]] = {}
        for name in free:
            known.setdefault(of_folder(name), []).append(name)
        claims: dict[int, list[str]] = {}
        for subject in subjects:
            if subject.class_index not in found:
                shared = alike[spelt][spelt(subject.name)] > 1
                names = known.get(of_class(subject), [])
                claims[subject.class_index] = [name for name in names if _by_index(name, subject) or not shared]
        _check_claims(root, claims, {subject.class_index: subject.name for subject in subjects})
        found |= {index: free.pop(names[0]) for index, names in claims.items() if names}
    lacking = [subject for subject in subjects if subject.class_index not in found]
    if lacking:
        raise ValueError(_no_folder(root, lacking, alike[plain], free))
    return [found[subject.class_index] for subject in subjects]


def _split(name: str) -> tuple[int | None, str]:
    """The number that a folder's name begins with, and what follows it."""
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]), plain(match[2] or "")) if match else (None, plain(name))


def _by_index(name: str, subject: Subject) -> bool:
    number, rest = _split(name)
    return number == subject.class_index and rest in ("", plain(subject.name))


def _name_alone(subject: Subject) -> str:
    return plain(subject.name) or f"/{subject.class_index}"  # a name of signs alone fits no folder but its own


_WAYS: tuple[tuple[Callable[[str], object], Callable[[Subject], object], Callable[[str], str]], ...] = (
    (str, lambda subject: subject.name, str),
    (_split, lambda subject: (subject.class_index, plain(subject.name)), plain),
    (plain, _name_alone, plain),
    (lambda name: _split(name)[1], _name_alone, plain),
    (_split, lambda subject: (subject.class_index, ""), plain),
)
"""What a folder and a class must have in common, the surest way first, and which spelling of the
name two classes must not share for it."""


def _check_claims(root: Path, claims: Mapping[int, Sequence[str]], names: Mapping[int, str]) -> None:
    for index, folders in claims.items():
        if len(folders) > 1:
            raise ValueError(
                f"diffuser.root={root}: folders {' and '.join(folders)} might both be class {index} "
                f"({names[index]!r}); keep one"
            )
    for folder, count in Counter(folders[0] for folders in claims.values() if folders).items():
        if count > 1:
            who = " and ".join(f"{index} ({names[index]!r})" for index, own in claims.items() if own == [folder])
            raise ValueError(f"diffuser.root={root}: folder {folder} might be class {who}; name folders by index")


def _no_folder(root: Path, lacking: Sequence[Subject], twice: Mapping[str, int], free: Mapping[str, Path]) -> str:
    some = ", ".join(f"{subject.class_index} ({subject.name!r})" for subject in lacking[:5])
    why = ""
    if any(twice[plain(subject.name)] > 1 for subject in lacking):
        why = "; classes that share a name need folders by index, such as 007 or 007-name"
    rest = f"; folders of no class: {', '.join(list(free)[:5])}" if free else ""
    return f"diffuser.root={root}: no folder for {len(lacking)} classes, first {some}{why}{rest}"


def images_in(folder: Path) -> list[Path]:
    """The images of a class: by the number that their names begin with, then those without one by name.

    Raises:
        ValueError: If two have the same number.
    """
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    numbered: dict[int, Path] = {}
    for file in files:
        if match := _LEADING.match(file.name):
            other = numbered.setdefault(int(match[0]), file)
            if other is not file:
                raise ValueError(f"{folder}: {other.name} and {file.name} have the same number; which comes first?")
    rest = [file for file in files if not _LEADING.match(file.name)]
    return [numbered[number] for number in sorted(numbered)] + rest
