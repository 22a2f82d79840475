"""Measures a million images in tar shards (B23): `python benchmarks/million_images.py`, 20 minutes and 40 MB of disk.

- B23a: listing 1,000,000 images in 100 shards for the first time (`dataset=webdataset`), per image, compared with only
  reading the shards and their SHA-256. B23b: the same with a cached index. B23c: memory of the list.
- B23d: growth of the peak memory of `lgclip classify --shards-to --labels`, from 100,000 to 1,000,000 images: read,
  decoded, resized, labelled and counted; the features are simulated by a product with a fixed matrix.

All shards are links to one with 10,000 different images. The argument `list` or `classify` measures only that part.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import Row, save_row
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/million_images.py"
PER_SHARD, SHARDS, FEW_SHARDS = 10_000, 100, 10
IMAGE_SIZE = 8
"""Height and width of an image in pixels."""

FEATURE_BYTES = 4 * 512
LIST_LIMIT = 200.0
"""Bytes of memory that the list may take per image."""


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])


def write_shards(folder: Path, names: list[str]) -> None:
    """Writes one shard, and links to it that are listed like separate shards."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for index in range(PER_SHARD):
            buffer = BytesIO()
            Image.fromarray(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(
                buffer, format="PNG"
            )
            for extension, content in (("png", buffer.getvalue()), ("cls", str(index % len(names)).encode())):
                info = tarfile.TarInfo(f"{index:06}.{extension}")
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    for number in range(1, SHARDS):
        (folder / f"{number:05}.tar").symlink_to(folder / "00000.tar")


def list_images(folder: Path, shards: int) -> dict[str, Any]:
    """Lists the images of `shards` shards in this process, first without a cache, then with it."""
    from lgclip.datasets.web_dataset import WebDataset

    pattern = f"{{00000..{shards - 1:05}}}.tar"
    names = str(folder.parent / "names.txt")
    before = peak_memory()
    start = time.perf_counter()
    data = WebDataset(str(folder), shards=pattern, names=names)
    first = time.perf_counter() - start
    used = peak_memory() - before
    start = time.perf_counter()
    cached = WebDataset(str(folder), shards=pattern, names=names)
    second = time.perf_counter() - start
    start = time.perf_counter()
    for number in range(shards):
        hashlib.sha256((folder / f"{number:05}.tar").read_bytes())
    read = time.perf_counter() - start
    count = len(data)
    if count != shards * PER_SHARD or cached.ids[count - 1] != data.ids[PER_SHARD - 1]:
        raise SystemExit("the list differs from the contents of the shards")
    return {"first": first, "second": second, "read": read, "bytes": used, "count": count}


class _SimulatedEncoder:
    """Encodes by a product with a fixed matrix, and otherwise delegates to the classifier's encoder."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        generator = torch.Generator().manual_seed(0)
        self._matrix = torch.randn(3 * IMAGE_SIZE * IMAGE_SIZE, encoder.width(), generator=generator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def on(self, device: torch.device) -> "_SimulatedEncoder":
        return self

    def load(self, device: torch.device) -> "_SimulatedEncoder":
        return self

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns unit features (b, d) of pixels (b, 3, h, w)."""
        small = torch.nn.functional.adaptive_avg_pool2d(pixels, IMAGE_SIZE).flatten(1)
        return torch.nn.functional.normalize(small @ self._matrix, dim=1)


def classify(folder: Path, shards: int) -> dict[str, Any]:
    """Classifies `shards` shards in this process; returns memory, time and hashes of the tables."""
    from lgclip.api import load
    from lgclip.classifier.shard_labels import ShardLabels
    from lgclip.classifier.shard_tables import ShardTables, TableSettings
    from lgclip.datasets.shard_listing import find_shards

    classifier = load(folder.parent / "classifier")
    classifier.encoder = _SimulatedEncoder(classifier.encoder)  # pyright: ignore[reportAttributeAccessIssue]
    labels = ShardLabels.from_options("cls", folder.parent / "names.txt")
    tables = folder.parent / f"tables-{shards}"
    start = time.perf_counter()
    shard_files = find_shards(f"{folder}/{{00000..{shards - 1:05}}}.tar", "shards")
    last = list(ShardTables(tables, TableSettings(labels=labels)).classify(classifier, shard_files))[-1]
    seconds = time.perf_counter() - start
    return {
        "bytes": peak_memory(),
        "seconds": seconds,
        "last": last,
        "tables": [_digest(tables, n) for n in (0, shards - 1)],
    }


def _digest(tables: Path, number: int) -> str:
    """Returns a hash of a table's predictions, without the names of the shards."""
    from pyarrow import parquet

    table = parquet.read_table(tables / f"{number:05}.parquet")
    return hashlib.sha256(str(table.drop_columns(["path"]).to_pydict()).encode()).hexdigest()


def run_in_new_process(verb: str, folder: Path, shards: int) -> dict[str, Any]:
    """Runs one measurement in a new process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        # Shard indexes are cached, so each measurement uses a separate cache.
        "XDG_CACHE_HOME": str(folder.parent / f"cache-{verb}-{shards}"),
    }
    command = [sys.executable, __file__, verb, str(folder), str(shards)]
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(process.stdout.splitlines()[-1])


def load_class_names() -> list[str]:
    """Returns the class names of the classifier."""
    lines = (ROOT / "examples/names.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition("\t")[0] for line in lines if line]


def main(parts: Sequence[str]) -> None:
    """Measures the parts, `list` and `classify`, and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        names = load_class_names()
        (work / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        write_shards(work / "shards", names)
        if "list" in parts:
            save_list_rows(
                {shards: run_in_new_process("list", work / "shards", shards) for shards in (FEW_SHARDS, SHARDS)}
            )
        if "classify" in parts:
            build = ["-m", "lgclip", "build", "examples/names.txt", "-o", str(work / "classifier")]
            values = [f"paths.store={work / 'store'}", "rejection=none", "prompts_per_class=2"]
            subprocess.run([sys.executable, *build, *values], check=True, cwd=ROOT)
            save_classification_row(
                {shards: run_in_new_process("classify", work / "shards", shards) for shards in (FEW_SHARDS, SHARDS)}
            )


def save_list_rows(measured: dict[int, dict[str, Any]]) -> None:
    """Saves the rows of the list of images."""
    few, many = measured[FEW_SHARDS], measured[SHARDS]
    count = many["count"]
    equality = f"keys of {count:,} images"
    title = f"listing {count:,} images in {SHARDS} tar shards, `dataset=webdataset`"
    reference = "reading the shards from the page cache and SHA-256 only"
    read = [1e6 * many["read"] / count]
    for number, condition, field in (("B23a", "the first time", "first"), ("B23b", "with a cached index", "second")):
        times = [1e6 * many[field] / count]
        task = f"{title}, {condition}"
        save_row(Row(number, task, reference, "", "us per image", times, read, equality, COMMAND, inverse=True))
    growth = [(many["bytes"] - few["bytes"]) / (count - few["count"])]
    task = f"memory of this list, from the peaks at {few['count']:,} and {count:,} images"
    limit = [LIST_LIMIT]
    save_row(Row("B23c", task, "limit of 200 B", "<= 1", "B per image", growth, limit, equality, COMMAND, inverse=True))


def save_classification_row(measured: dict[int, dict[str, Any]]) -> None:
    """Saves the row of classified shards."""
    few, many = measured[FEW_SHARDS], measured[SHARDS]
    if len({*few["tables"], *many["tables"]}) != 1:
        raise SystemExit("tables of equal shards differ")
    counts = [FEW_SHARDS * PER_SHARD, SHARDS * PER_SHARD]
    growth = max(0, many["bytes"] - few["bytes"]) / (counts[1] - counts[0])
    save_row(
        Row(
            "B23d",
            f"`lgclip classify --shards-to --labels`: growth of peak memory, {counts[0]:,} to {counts[1]:,} images",
            "feature of 512 floats",
            "<= 0.05",
            "B per image",
            [growth],
            [float(FEATURE_BYTES)],
            "predictions of the first and the last shard",
            COMMAND,
            inverse=True,
        )
    )
    print(f"{counts[1] / many['seconds']:.0f} images/s; {many['last']}")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measurement = {"list": list_images, "classify": classify}[sys.argv[1]]
        print(json.dumps(measurement(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(sys.argv[1:] or ["list", "classify"])
