"""Measures how memory grows with the classified files (B16): `python benchmarks/classify_memory.py`, five minutes.

Peak resident memory of `lgclip classify` over 2,000 and over 40,000 files of the small world, to a CSV file. The growth
per file is compared with one feature of 512 floats, the memory that keeping the features would take. Both tables are
compared first.
"""

import csv
import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from comparison import Row, save_row
from PIL import Image

from lgclip.tiny import world

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/classify_memory.py"
FEW, MANY = 2_000, 40_000
DISTINCT = 200
"""Files with different contents."""

FEATURE_BYTES = 4 * 512


def run_and_measure_peak(*command: str) -> int:
    """Runs a Python command and returns its peak resident memory in bytes.

    Raises:
        SystemExit: If it fails.
    """
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return 1024 * usage.ru_maxrss


def write_images(folder: Path, count: int) -> Path:
    """Writes `count` files, of which `DISTINCT` have different contents."""
    contents: list[bytes] = []
    for index in range(DISTINCT):
        buffer = BytesIO()
        Image.fromarray(world.image_of("test", index)).save(buffer, format="JPEG")
        contents.append(buffer.getvalue())
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:06}.jpg").write_bytes(contents[index % DISTINCT])
    return folder


def read_labels(table: Path) -> list[str]:
    """Returns the classes of a table, in the order of its rows."""
    with table.open(newline="", encoding="utf-8") as file:
        return [row["label"] for row in csv.DictReader(file)]


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        classifier = work / "classifier"
        names = ROOT / "examples" / "names.txt"
        run_and_measure_peak(
            "-m", "lgclip", "build", str(names), "-o", str(classifier), f"paths.store={work / 'store'}"
        )
        peaks: dict[int, int] = {}
        tables: dict[int, list[str]] = {}
        for count in (FEW, MANY):
            table = work / f"{count}.csv"
            images = write_images(work / str(count), count)
            peaks[count] = run_and_measure_peak(
                "-m", "lgclip", "classify", str(classifier), str(images), "-o", str(table)
            )
            tables[count] = read_labels(table)
    if tables[MANY] != tables[FEW] * (MANY // FEW):
        raise SystemExit("the same image is assigned to different classes")
    growth = max(0, peaks[MANY] - peaks[FEW]) / (MANY - FEW)
    save_row(
        Row(
            "B16",
            f"`lgclip classify`: growth of peak memory, {FEW:,} to {MANY:,} files",
            "feature of 512 floats",
            "<= 0.25",
            "B per file",
            [growth],
            [float(FEATURE_BYTES)],
            f"labels of {MANY:,} files",
            COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    main()
