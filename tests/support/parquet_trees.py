"""Writes Parquet files as data sets of the hub have them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from imagenet_trees import content
from PIL import Image
from pyarrow import parquet

from lgclip.datasets.image_decoding import read_image

NAMES = ["blue_moon", "green ring", "red star"]
LABELS = [0, 2, 1, 1, 0, 2, 2]
CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}
CARD = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': zero
          '2': two
          '1': one
  splits:
  - name: train
    num_examples: 2
  - name: test
    num_examples: 7
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# A data set
"""


def table(images: Sequence[bytes], columns: dict[str, list[Any]], label: dict[str, Any] | None = None) -> pa.Table:
    """Returns images as structs, other columns, and the features as `datasets` writes them into the schema."""
    structs = pa.array(
        [{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    content = pa.table({"image": structs, **columns})
    if label is None:
        return content
    features = {"image": {"_type": "Image"}, "label": label}
    return content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(root: Path, file: str, rows: pa.Table, row_group: int = 2) -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(rows, root / file, row_group_size=row_group)
    return root


def shards(root: Path, label: dict[str, Any] | None = CLASS_LABEL, split: str = "test") -> Path:
    """Writes seven images in two files with two or more row groups."""
    images = [content(i) for i in range(len(LABELS))]
    for number, (start, end) in enumerate(((0, 5), (5, 7))):
        rows = table(images[start:end], {"label": LABELS[start:end]}, label)
        write(root, f"data/{split}-{number:05}-of-00002.parquet", rows)
    return root


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def generated(number: int, folder: Path) -> np.ndarray:
    """Returns the image with this number, read from a file of its own."""
    (folder / "one.jpg").write_bytes(content(number))
    return pixels(read_image(folder / "one.jpg"))
