"""Writes tar shards in WebDataset's layout, and a data set in the layout of CLIP benchmark."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from factories import NAMES

Member = tuple[str, bytes]


def write_tar(path: Path, members: Sequence[Member], mode: str = "w") -> Path:
    """Writes a tar file with these members, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(stem: str, content: bytes, label: object, extension: str = "png") -> list[Member]:
    """Returns the files of one sample: its image and the label."""
    return [(f"{stem}.{extension}", content), (f"{stem}.cls", str(label).encode())]


def images_of(root: Path) -> list[tuple[int, bytes]]:
    """Returns label and content of each image of `make_image_folder`, in the order of `dataset=folder`."""
    images: list[tuple[int, bytes]] = []
    for label, name in enumerate(NAMES):
        files = sorted((root / name.replace(" ", "_")).iterdir())
        images += [(label, file.read_bytes()) for file in files]
    return images


def write_web_dataset(root: Path, images: Sequence[tuple[int, bytes]], shards: int = 3) -> Path:
    """Writes a data set with a split `test`, in the layout of CLIP benchmark; returns its folder."""
    for number in range(shards):
        part = range(number, len(images), shards)
        members = [member for i in part for member in sample(f"{i:04d}", images[i][1], images[i][0])]
        write_tar(root / f"test/{number}.tar", members)
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na drawing of a {c}.\n")
    (root / "test/nshards.txt").write_text(f"{shards}\n")
    return root
