"""Measures the evaluation of a million stored features (B17): `python benchmarks/million_features.py`.

Takes three minutes and 3 GB of disk.

- B17a: peak memory of evaluating 1,000,000 simulated features (width 512) of 1,000 classes, read from the store, above
  that of the interpreter with its imports.
- B17b: time per image until a run knows that no feature is missing: it reads and verifies every file of features once.
  The reference is reading the same files from the page cache, and their checksums.

Predictions are compared first with the matrix products.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from comparison import Row, save_row
from torch.nn.functional import normalize

from lgclip.datasets.packed_strings import PackedHashes
from lgclip.methods.base import PredictionCollector, Predictions
from lgclip.methods.calibration import Choice
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First
from lgclip.stages.streams import Stream
from lgclip.store.features import FeatureStore

COMMAND = "python benchmarks/million_features.py"
CLASSES, WIDTH, CHUNK = 1000, 512, 5000
SIZES = (250_000, 1_000_000)
LIMIT = 1e9
"""Bytes above the interpreter's memory that an evaluation may take."""


def generate_ids(count: int) -> Iterator[str]:
    """Yields the content keys of `count` images."""
    return (f"{index * 0x9E3779B97F4A7C15 & (2**128 - 1):032x}" for index in range(1, count + 1))


def simulate(root: Path, count: int) -> FeatureStore:
    """Writes features that are scattered around the center of their class."""
    store = FeatureStore(root, {"encoder": "simulated"}, {"source": "simulated"})
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    names = list(generate_ids(count))
    for start in range(0, count, CHUNK):
        labels = torch.arange(start, start + CHUNK) % CLASSES
        features = normalize(centers[labels] + 0.15 * torch.randn(CHUNK, WIDTH, generator=generator), dim=1)
        store.add(names[start : start + CHUNK], ["full"], features[:, None])
    return store


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])


def evaluate(root: Path, count: int) -> dict[str, float]:
    """Evaluates the stored features as a run does, in this process; returns memory and time."""
    before = peak_memory()
    store = FeatureStore(root, {"encoder": "simulated"}, {"source": "simulated"})
    labels = np.arange(count, dtype=np.int32) % CLASSES
    stream = Stream("real", PackedHashes(generate_ids(count)), labels.tolist(), ("full",), store, lambda index: "")
    start = time.perf_counter()
    missing = stream.missing()
    seconds = time.perf_counter() - start
    if missing:
        raise SystemExit(f"{len(missing)} features are missing")
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    score = Choice(Mean(), First(), 0.0).fit(SupportSet(centers, torch.arange(CLASSES), CLASSES), None)
    collector = PredictionCollector()
    for batch in stream.batches():
        collector.update(score(batch.features[:, 0]), batch.labels, batch.indices)
    rows, probs = collector.compute()
    predictions = Predictions(*rows.unbind(dim=1), *probs.unbind(dim=1))
    used = peak_memory() - before
    for batch in stream.batches():
        expected = (batch.features[:, 0] @ centers.T).argmax(dim=1)
        if not torch.equal(predictions.prediction[batch.indices], expected):
            raise SystemExit("a prediction is not the first class with the highest score")
    return {"bytes": used, "seconds": seconds}


def read_all(root: Path) -> float:
    """Returns the seconds of reading every file of features, and of the checksums."""
    start = time.perf_counter()
    for path in sorted(root.rglob("*.safetensors")):
        zlib.crc32(path.read_bytes())
    return time.perf_counter() - start


def main() -> None:
    """Measures and saves the rows."""
    measured: dict[int, dict[str, float]] = {}
    baselines: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in SIZES:
            root = Path(name) / str(count)
            simulate(root, count)
            baselines[count] = read_all(root)
            command = [sys.executable, __file__, str(root), str(count)]
            # Includes this folder, and the package where it is not installed.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            measured[count] = json.loads(process.stdout)
    few, many = SIZES
    equality = f"predictions of {many:,} images"
    megabytes = measured[many]["bytes"] / 1e6
    task = (
        f"evaluating {many:,} stored features x {CLASSES:,} classes, width {WIDTH}: peak memory above the interpreter's"
    )
    limit = [LIMIT / 1e6]
    save_row(Row("B17a", task, "limit of 1 GB", "<= 1", "MB", [megabytes], limit, equality, COMMAND, inverse=True))
    slope = 1e6 * (measured[many]["seconds"] - measured[few]["seconds"]) / (many - few)
    bound = 1e6 * (baselines[many] - baselines[few]) / (many - few)
    save_row(
        Row(
            "B17b",
            f"checking that no feature is missing, {few:,} to {many:,} images: every file is verified",
            "reading the files from the page cache and CRC-32 only",
            "",
            "us per image",
            [slope],
            [bound],
            equality,
            COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(evaluate(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
