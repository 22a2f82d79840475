"""A data set outside of lgclip: images that a CSV file lists, with the columns `file` and `label`."""

import csv
from pathlib import Path

from lgclip.datasets.base import checked_names
from lgclip.datasets.image_files import ImageFiles


class CsvImages(ImageFiles):
    """Reads the images that a CSV file lists.

    Args:
        table: The CSV file; the paths in its column `file` are relative to its folder.
        context: Type of the classes, such as "a type of bird"; it is part of the prompts.

    Raises:
        ValueError: If the file lists no image.
    """

    def __init__(self, table: str, context: str = "") -> None:
        path = Path(table).expanduser().absolute()
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError(f"dataset.table={table}: no rows; give a CSV file with the columns file and label")
        class_names = checked_names(sorted({row["label"] for row in rows}))
        super().__init__(
            name=path.stem,
            root=path.parent,
            files=[row["file"] for row in rows],
            labels=[class_names.index(row["label"]) for row in rows],
            class_names=class_names,
            split="all",
            names="csv",
            context=context,
        )
