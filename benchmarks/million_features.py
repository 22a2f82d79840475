"""A million stored features: `python benchmarks/million_features.py`, in three minutes, 3 GB of disk (B17).

B17a: peak memory of evaluating 1,000,000 simulated features (width 512) among 1,000 classes, read from the store,
beyond that of the interpreter with its imports. B17b: how long a run takes to know that nothing is missing, by image:
it reads and checks every file of features once. Its reference is reading the same files, which are in the system's
cache, and their checksum alone. Predictions are compared with those of plain products first.
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
"""Bytes beyond the interpreter that an evaluation may take."""


def ids(count: int) -> Iterator[str]:
    """Content keys of so many images."""
    return (f"{place * 0x9E3779B97F4A7C15 & (2**128 - 1):032x}" for place in range(1, count + 1))


def simulate(root: Path, count: int) -> FeatureStore:
    """Writes features that lie about their class's center."""
    store = FeatureStore(root, {"encoder": "simulated"}, {"source": "simulated"})
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    names = list(ids(count))
    for start in range(0, count, CHUNK):
        labels = torch.arange(start, start + CHUNK) % CLASSES
        features = normalize(centers[labels] + 0.15 * torch.randn(CHUNK, WIDTH, generator=generator), dim=1)
        store.add(names[start : start + CHUNK], ["full"], features[:, None])
    return store


def peak() -> int:
    """The peak of this process's resident memory in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split(maxsplit=1)[0])


def evaluate(root: Path, count: int) -> dict[str, float]:
    """Evaluates what is stored, as a run does, in this process."""
    before = peak()
    store = FeatureStore(root, {"encoder": "simulated"}, {"source": "simulated"})
    labels = np.arange(count, dtype=np.int32) % CLASSES
    stream = Stream("real", PackedHashes(ids(count)), labels.tolist(), ("full",), store, lambda place: "")
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
    used = peak() - before
    for batch in stream.batches():
        plain = (batch.features[:, 0] @ centers.T).argmax(dim=1)
        if not torch.equal(predictions.prediction[batch.indices], plain):
            raise SystemExit("a prediction is not the first of the highest scores")
    return {"bytes": used, "seconds": seconds}


def read_all(root: Path) -> float:
    """Seconds of reading every file of features and of their checksums."""
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
            # The path of this folder, and of the package where it is not installed.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            measured[count] = json.loads(done.stdout)
    few, many = SIZES
    equal = f"the predictions of {many:,} images"
    taken = measured[many]["bytes"] / 1e6
    ours = f"evaluating {many:,} stored features x {CLASSES:,} classes, width {WIDTH}: peak beyond the interpreter"
    save_row(Row("B17a", ours, "1 GB, the limit", "<= 1", "MB", [taken], [LIMIT / 1e6], equal, COMMAND, inverse=True))
    slope = 1e6 * (measured[many]["seconds"] - measured[few]["seconds"]) / (many - few)
    bound = 1e6 * (baselines[many] - baselines[few]) / (many - few)
    save_row(
        Row(
            "B17b",
            f"knowing that nothing is missing, {few:,} to {many:,} images: every file is checked",
            "reading the files from the system's cache, and CRC-32, alone",
            "",
            "us an image",
            [slope],
            [bound],
            equal,
            COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(evaluate(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
