"""A file an image against tar shards: `python benchmarks/image_shards.py [IMAGES [INDEXED]]`, 20,000 and 1,000,000.

Writes IMAGES small images both ways, 16 a batch; then fresh processes find every one, look whether something has
come, and read the bytes of all. Bytes must be equal. The last column opens the indexes of INDEXED images, whose
shards have no content. From the page cache; not synced to the disk but by the closing of a shard.
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
BATCH, SIDE, FACES = 16, 64, 64


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def ids(count: int) -> list[str]:
    """Names of the images."""
    return [content_key({"image": number}) for number in range(count)]


def timed(figures: dict[str, float], name: str, call: Callable[[], object]) -> object:
    """What a call returns; its seconds go to the figures."""
    start = time.process_time()
    result = call()
    figures[name] = time.process_time() - start
    return result


def written(root: Path, count: int, *, in_shards: bool) -> dict[str, float]:
    """Writes the images; what it took and what lies there."""
    rng, figures = np.random.default_rng(0), dict[str, float]()
    faces = [np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(FACES)]
    faces = [(face // 2 + rng.integers(0, 60, face.shape, np.uint8)).astype(np.uint8) for face in faces]
    store, names = ImageStore(root, INPUTS, in_shards=in_shards), ids(count)

    def write() -> None:
        for at, name in enumerate(names):
            identity = {"class": f"thing {at % 1000}", "occurrence": 0, "text": "a photo of a thing.", "repeat": at}
            about = {**identity, "seed": 0, "attempt": 0}
            store.put(name, faces[at % FACES], about)
            if at % BATCH == BATCH - 1:
                store.flush()
        store.close()
        store.list_shards()

    timed(figures, "CPU seconds to write", write)
    lying = [path.stat() for path in root.rglob("*") if path.is_file()]
    figures["files"] = len(lying)
    figures["folders"] = sum(path.is_dir() for path in root.rglob("*"))
    figures["MB on the disk"] = sum(stats.st_blocks for stats in lying) * 512 / 1e6
    return figures


def read(root: Path, count: int, *, content: bool) -> dict[str, float]:
    """What a process that comes to the store spends; in one of its own."""
    figures, names = dict[str, float](), ids(count)
    before = peak()
    store = timed(figures, "CPU seconds to open", lambda: ImageStore(root, INPUTS))
    assert isinstance(store, ImageStore)
    places = timed(figures, "CPU seconds to find all", lambda: store.places(names))
    assert isinstance(places, list)
    assert all(places)
    figures["MB to find all"] = peak() - before
    timed(figures, "CPU seconds to look again", store.refresh)
    if content:
        digest = sha256()
        timed(figures, "CPU seconds to read all", lambda: [digest.update(place.read_bytes()) for place in places])
        figures["sum"] = float(int(digest.hexdigest()[:8], 16))
    return figures


def index_alone(root: Path, count: int) -> None:
    """Shards without content, as far as the system goes: their indexes are what is measured."""
    folder = ImageStore(root, INPUTS).path("00").parent.parent / "shards"
    folder.mkdir(parents=True)
    names = np.array(ids(count), dtype="S32")
    for start in range(0, count, SHARD_IMAGES):
        own, shard = names[start : start + SHARD_IMAGES], folder / f"{secrets.token_hex(16)}.tar"
        spans = np.column_stack([np.arange(len(own)) * 4096 + 1536, np.full(len(own), 2000)])
        size = len(own) * 4096 + 1024
        with shard.open("wb") as file:
            file.truncate(size)
        flags = np.zeros(len(own), bool)
        write_index(shard, Listing(own, spans, flags, flags, size - 1024, size, "0" * 64))


def in_a_process(root: Path, count: int, content: str) -> dict[str, float]:
    """What `read` says in a process of its own."""
    command = [sys.executable, __file__, "read", str(root), str(count), content]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


def shown(figure: float | None) -> str:
    """A cell of the table."""
    return "" if figure is None else f"{figure:,.0f}" if figure >= 20 else f"{figure:.2f}"


def main(count: int, indexed: int) -> None:
    """Prints the table."""
    with TemporaryDirectory() as folder:
        columns = {}
        for kept in ("files", "tar"):
            root = Path(folder) / kept
            made = written(root, count, in_shards=kept == "tar")
            columns[f"{count:,} {kept}"] = made | in_a_process(root, count, "all")
        first, second = columns.values()
        assert first.pop("sum") == second.pop("sum"), "the images are not the same"
        index_alone(Path(folder) / "indexed", indexed)
        columns[f"{indexed:,} indexed"] = in_a_process(Path(folder) / "indexed", indexed, "none")
        print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name in first:
            print(f"| {name} | {' | '.join(shown(column.get(name)) for column in columns.values())} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        print(json.dumps(read(Path(sys.argv[2]), int(sys.argv[3]), content=sys.argv[4] == "all")))
    else:
        main(*[int(one) for one in sys.argv[1:]] or (20_000, 1_000_000))
