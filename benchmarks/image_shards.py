"""Compares one file per image with tar shards: `python benchmarks/image_shards.py [IMAGES [INDEXED]]`.

IMAGES (20,000) small images are written in both layouts, in batches of 16. New processes then find every image, look
for added ones, and read the bytes of all, which must be equal. The last column opens the indexes of INDEXED (1,000,000)
images, whose shards have no content. Files are read from the page cache, and synced to the disk only when a shard is
closed. Prints a table.
"""

import json
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.shard_index import Listing, write_index
from lgclip.store.tar_shards import SHARD_IMAGES

INPUTS = {"diffuser": "benchmark"}
BATCH = 16
IMAGE_SIZE = 64
"""Height and width in pixels, a multiple of 8."""

DISTINCT = 64
"""Number of images with different pixels."""


def peak_memory() -> float:
    """Returns the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def make_ids(count: int) -> list[str]:
    """Returns the keys of the images."""
    return [content_key({"image": number}) for number in range(count)]


def measure(metrics: dict[str, float], name: str, call: Callable[[], object]) -> object:
    """Returns the result of a call, and adds its CPU seconds to the metrics."""
    start = time.process_time()
    result = call()
    metrics[name] = time.process_time() - start
    return result


def write_images(root: Path, count: int, *, in_shards: bool) -> dict[str, float]:
    """Writes the images; returns the time, and the number and size of the files."""
    rng = np.random.default_rng(0)
    metrics: dict[str, float] = {}
    images = [
        np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((IMAGE_SIZE // 8, IMAGE_SIZE // 8, 1), np.uint8))
        for _ in range(DISTINCT)
    ]
    images = [(image // 2 + rng.integers(0, 60, image.shape, np.uint8)).astype(np.uint8) for image in images]
    store = ImageStore(root, INPUTS, in_shards=in_shards)
    image_ids = make_ids(count)

    def write() -> None:
        for index, image_id in enumerate(image_ids):
            key = {"class": f"thing {index % 1000}", "occurrence": 0, "text": "a photo of a thing.", "repeat": index}
            metadata = {**key, "seed": 0, "attempt": 0}
            store.put(image_id, images[index % DISTINCT], metadata)
            if index % BATCH == BATCH - 1:
                store.flush()
        store.close()
        store.list_shards()

    measure(metrics, "CPU seconds to write", write)
    file_stats = [path.stat() for path in root.rglob("*") if path.is_file()]
    metrics["files"] = len(file_stats)
    metrics["folders"] = sum(path.is_dir() for path in root.rglob("*"))
    metrics["MB on the disk"] = sum(stats.st_blocks for stats in file_stats) * 512 / 1e6
    return metrics


def read_images(root: Path, count: int, *, content: bool) -> dict[str, float]:
    """Opens the store in this process and finds all images; returns time and memory."""
    metrics: dict[str, float] = {}
    image_ids = make_ids(count)
    before = peak_memory()
    store = measure(metrics, "CPU seconds to open", lambda: ImageStore(root, INPUTS))
    assert isinstance(store, ImageStore)
    places = measure(metrics, "CPU seconds to find all", lambda: store.places(image_ids))
    assert isinstance(places, list)
    assert all(places)
    metrics["MB to find all"] = peak_memory() - before
    measure(metrics, "CPU seconds to look again", store.refresh)
    if content:
        digest = sha256()
        measure(metrics, "CPU seconds to read all", lambda: [digest.update(place.read_bytes()) for place in places])
        metrics["sum"] = float(int(digest.hexdigest()[:8], 16))
    return metrics


def write_indexes(root: Path, count: int) -> None:
    """Writes shards without content, and their indexes."""
    folder = ImageStore(root, INPUTS).path("00").parent.parent / "shards"
    folder.mkdir(parents=True)
    image_ids = np.array(make_ids(count), dtype="S32")
    for start in range(0, count, SHARD_IMAGES):
        shard_ids = image_ids[start : start + SHARD_IMAGES]
        shard = folder / f"{secrets.token_hex(16)}.tar"
        spans = np.column_stack([np.arange(len(shard_ids)) * 4096 + 1536, np.full(len(shard_ids), 2000)])
        size = len(shard_ids) * 4096 + 1024
        with shard.open("wb") as file:
            file.truncate(size)
        flags = np.zeros(len(shard_ids), bool)
        write_index(shard, Listing(shard_ids, spans, flags, flags, size - 1024, size, "0" * 64))


def read_in_new_process(root: Path, count: int, content: str) -> dict[str, float]:
    """Returns the metrics of `read_images` in a new process."""
    command = [sys.executable, __file__, "read", str(root), str(count), content]
    completed = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(completed.stdout)


def format_cell(value: float | None) -> str:
    """Returns a cell of the table."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 20 else f"{value:.2f}"


def main(count: int, indexed: int) -> None:
    """Prints the table."""
    with TemporaryDirectory() as folder:
        columns = {}
        for layout in ("files", "tar"):
            root = Path(folder) / layout
            metrics = write_images(root, count, in_shards=layout == "tar")
            columns[f"{count:,} {layout}"] = metrics | read_in_new_process(root, count, "all")
        first, second = columns.values()
        assert first.pop("sum") == second.pop("sum"), "the images are not the same"
        write_indexes(Path(folder) / "indexed", indexed)
        columns[f"{indexed:,} indexed"] = read_in_new_process(Path(folder) / "indexed", indexed, "none")
        print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name in first:
            print(f"| {name} | {' | '.join(format_cell(column.get(name)) for column in columns.values())} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        print(json.dumps(read_images(Path(sys.argv[2]), int(sys.argv[3]), content=sys.argv[4] == "all")))
    else:
        main(*[int(argument) for argument in sys.argv[1:]] or (20_000, 1_000_000))
