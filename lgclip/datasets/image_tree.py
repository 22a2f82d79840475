"""Lists the images in folders; whatever is left out is counted with its reason."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lgclip.datasets.image_decoding import is_image
from lgclip.runtime.terminal import single_line

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".tga", ".qoi", ".svg", ".heic", ".heif", ".jxl",
)  # fmt: skip
"""Suffixes of images. Those that Pillow cannot decode are among them, so that they are errors and not left out."""

# Files next to images that are never opened: a data set may have one per image. All others are looked at.
_OTHER_SUFFIXES = (
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".htm", ".log", ".py",
    ".ipynb", ".npy", ".npz", ".pt", ".pth", ".pkl", ".mat", ".h5", ".parquet", ".safetensors", ".db", ".zip", ".tar",
    ".gz", ".tgz", ".pdf", ".mp4", ".avi", ".mov", ".caption", ".lock", ".sh", ".ini", ".cfg",
)  # fmt: skip
_TOOL_NAMES = (
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "__pycache__", "@eadir", "@recycle", "#recycle",
    "#snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found",
)  # fmt: skip
_TOOL_SUFFIXES = ("~", ".tmp", ".part", ".partial", ".crdownload", ".download", ".bak", ".orig", ".swp")

HIDDEN = "hidden"
TOOLS = "left by an operating system or a tool"
NO_IMAGE = "no image"
BROKEN_LINK = "link that leads nowhere"
REPEATED_LINK = "link to what is read already"
SPECIAL = "pipe, socket or device"
NESTED = "in a sub-folder of a class"
NO_CLASS = "outside the class folders"

LINKED = "through a link"
BY_CONTENT = "known by its content, not its name"


@dataclass
class ImageTree:
    """Lists the images below a folder.

    Attributes:
        files: Path of each image, relative to the root, sorted.
        left_out: Number of files and folders that are not read, by reason.
        unusual: Number of images that are read although a reader might not expect it, by reason.
        examples: First path of each reason.
        shared: The images that are reached through a link, or whose file has several names.
        linked: Those of them that are reached through a link.
    """

    files: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unusual: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    linked: set[str] = field(default_factory=set)

    def leave_out(self, reason: str, path: str) -> None:
        """Counts a file or folder that is not read."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, path)

    def note(self, reason: str, path: str) -> None:
        """Counts an image that is read although a reader might not expect it."""
        self.unusual[reason] += 1
        self.examples.setdefault(reason, path)

    def add(self, other: "ImageTree") -> None:
        """Adds the counts of another folder; not its files."""
        self.shared += other.shared
        self.linked |= other.linked
        self.left_out += other.left_out
        self.unusual += other.unusual
        self.examples = {**other.examples, **self.examples}

    def report(self, root: Path) -> None:
        """Logs what is left out and what is unusual, one line per reason."""
        for reason, count in self.left_out.items():
            log.warning("%s: not read, %s: %d, such as %s", root, reason, count, single_line(self.examples[reason]))
        for reason, count in self.unusual.items():
            log.warning("%s: images %s: %d, such as %s", root, reason, count, single_line(self.examples[reason]))


def is_leftover(name: str) -> str | None:
    """Returns the reason why a name is never read: hidden, or left by an operating system or a tool; None otherwise."""
    if name.startswith("."):
        return HIDDEN
    lower = name.lower()
    if lower in _TOOL_NAMES or lower.endswith(_TOOL_SUFFIXES):
        return TOOLS
    return None


def class_folders(root: Path) -> tuple[list[str], ImageTree]:
    """Returns the names of a folder's subfolders, sorted, and what else is in it."""
    tree = ImageTree()
    folders: list[str] = []
    for entry in _entries(root):
        reason = is_leftover(entry.name)
        if reason:
            tree.leave_out(reason, entry.name)
        elif entry.is_dir():
            folders.append(entry.name)
        elif entry.is_symlink() and not entry.is_file():
            tree.leave_out(BROKEN_LINK, entry.name)
        elif entry.is_file() and _is_image_file(entry):
            tree.leave_out(NO_CLASS, entry.name)
    return folders, tree


def list_images(root: Path, folder: str, *, recursive: bool) -> ImageTree:
    """Lists the images in a folder. Links are followed; see `drop_repeated`.

    Args:
        root: The root.
        folder: The folder, relative to it; "" for the root itself.
        recursive: Whether subfolders are read too; else they are left out.
    """
    tree = ImageTree()
    for path, entry, is_linked in _walk(root / folder, folder, tree, recursive=recursive):
        if is_linked or entry.is_symlink():
            tree.linked.add(path)
            tree.shared.append(path)
        elif entry.stat().st_nlink > 1:
            tree.shared.append(path)
        if "/" in path.removeprefix(f"{folder}/"):
            tree.note(NESTED, path)
        if not path.lower().endswith(IMAGE_SUFFIXES):
            tree.note(BY_CONTENT, path)
        tree.files.append(path)
    tree.files.sort(key=lambda file: file.split("/"))
    return tree


def drop_repeated(root: Path, files: Sequence[str], tree: ImageTree) -> dict[str, str]:
    """Finds the paths that lead to a file which another path leads to, so that no image counts twice.

    A file's own path is kept before a link to it, and of several links or names the first. The others are counted in
    the tree as left out, the links that are kept as noted.

    Args:
        root: The root.
        files: Path of each image, relative to it.
        tree: Lists the shared ones among them.

    Returns:
        For each path to drop, the path that is kept.
    """
    if not tree.shared:
        return {}
    shared = set(tree.shared)
    paths_by_inode = {_inode((root / path).stat()): path for path in files if path not in shared}
    dropped: dict[str, str] = {}
    for path in sorted(shared, key=lambda path: (path in tree.linked, path)):
        first_path = paths_by_inode.setdefault(_inode((root / path).stat()), path)
        if first_path != path:
            dropped[path] = first_path
            tree.leave_out(REPEATED_LINK, path)
        elif path in tree.linked:
            tree.note(LINKED, path)
    return dropped


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _walk(
    start: Path, prefix: str, tree: ImageTree, *, recursive: bool
) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Yields path and entry of each image, and whether it lies in a linked folder; each folder is read once."""
    visited = {_inode(start.stat())}
    # Folders before links to folders: where both lead to the same one, its own path is the one that is read.
    folders = [(str(start), prefix, False)]
    links: list[tuple[str, str, bool]] = []
    while folders or links:
        place, path, is_linked = folders.pop() if folders else links.pop(0)
        inode = _inode(Path(place).stat())
        if inode in visited and place != str(start):
            tree.leave_out(REPEATED_LINK, path)
            continue
        visited.add(inode)
        for entry in _entries(place):
            name = f"{path}/{entry.name}" if path else entry.name
            reason = is_leftover(entry.name)
            if reason:
                tree.leave_out(reason, name)
            elif entry.is_dir() and not recursive:
                tree.leave_out(NESTED, name)
            elif entry.is_dir() and entry.is_symlink():
                links.append((entry.path, name, True))
            elif entry.is_dir():
                folders.append((entry.path, name, is_linked))
            elif not entry.is_file():
                tree.leave_out(SPECIAL if Path(entry.path).exists() else BROKEN_LINK, name)
            elif _is_image_file(entry):
                yield name, entry, is_linked
            else:
                tree.leave_out(NO_IMAGE, name)


def _inode(result: os.stat_result) -> tuple[int, int]:
    return result.st_dev, result.st_ino


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    name = entry.name.lower()
    if name.endswith(IMAGE_SUFFIXES):
        return True
    # Others are looked at by their content: a browser shows an image whatever its name.
    return not name.endswith(_OTHER_SUFFIXES) and is_image(Path(entry.path))
