"""Names the files of a classifier, and checks where it is saved before anything heavy is imported or computed."""

from pathlib import Path

RECORD = "classifier.json"
TENSORS = "classifier.safetensors"
SHEET = "prototypes.png"
CARD = "README.md"
SCHEMA = 4
MODEL = "model"
ENCODER = f"{MODEL}/encoder"
PACKED = "packed:"
"""Beginning of a setting that names a file or folder inside the classifier's own."""
ZIP = ".zip"
EXPORT_SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino", ".safetensors": "safetensors"}


def check_place(path: Path) -> None:
    """Checks that a classifier can be saved to a path: a new folder, that of a classifier, or a `.zip` file.

    Raises:
        ValueError: If something else is there, which would be overwritten.
    """
    if path.suffix.lower() == ZIP:
        if path.is_dir():
            raise ValueError(f"{path}: it is a folder; name a file, or a folder without {ZIP}")
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: it is a file; name a folder, or a file that ends with {ZIP}")
    # A folder of something else may hold files of these names.
    if path.is_dir() and any(path.iterdir()) and not (path / RECORD).exists():
        raise ValueError(f"{path}: it holds other files and no classifier; name a new folder")


def export_format(path: Path) -> str:
    """Returns the format that the name of an exported file stands for.

    Raises:
        ValueError: If it stands for none.
    """
    suffix_format = EXPORT_SUFFIXES.get(path.suffix.lower())
    if suffix_format is None:
        raise ValueError(f"{path}: name a file that ends with {', '.join(EXPORT_SUFFIXES)}, or choose a format")
    return suffix_format
