"""Classifies images in tar and parquet shards: as files of their own, shard by shard, resumable, in little memory."""

import csv
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import FirstRun
from web_shards import write_tar

from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.shard_tables import TableSettings
from lgclip.classifier.sources import expand_sources
from lgclip.cli.main import main
from lgclip.datasets.image_shards import ShardImage, shard_images
from lgclip.datasets.shard_files import ShardFile, local_shard
from lgclip.reporting.run_classifier import classifier_of

pytest_plugins = ("run_fixtures",)


@pytest.fixture(scope="module")
def saved(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves the classifier of the first run."""
    return classifier_of(first_run.folder).save(tmp_path_factory.mktemp("saved") / "classifier")


@pytest.fixture
def files(first_run: FirstRun) -> list[Path]:
    """Returns the images of the first run's data set."""
    return sorted(first_run.sandbox.synthetic_images.rglob("*.png"))


def samples(files: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Returns images in WebDataset's layout: files of one sample have one stem."""
    members: list[tuple[str, bytes]] = []
    for number, file in enumerate(files):
        members += [(f"{number:04d}.cls", b"0"), (f"{number:04d}.png", file.read_bytes())]
    return members


def write_parquet(path: Path, contents: Sequence[bytes | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([{"bytes": content, "path": "x.png"} for content in contents])
    pq.write_table(pa.table({"image": column, "label": list(range(len(contents)))}), path, row_group_size=5)
    return path


def classify(classifier: Path, *arguments: str | Path) -> int:
    return main(["classify", str(classifier), *map(str, arguments)])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predictions(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(row["label"], row["score"], row["margin"]) for row in rows]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.parquet"])
def test_predictions_are_those_of_files(saved: Path, files: list[Path], tmp_path: Path, name: str) -> None:
    shard = tmp_path / name
    if name.endswith(".parquet"):
        write_parquet(shard, [file.read_bytes() for file in files])
    else:
        write_tar(shard, samples(files), "w:gz" if "gz" in name else "w")
    assert classify(saved, *files, "-o", tmp_path / "files.csv") == 0
    assert classify(saved, shard, "-o", tmp_path / "shard.csv") == 0
    expected = read(tmp_path / "files.csv")
    actual = read(tmp_path / "shard.csv")
    assert predictions(actual) == predictions(expected)
    assert len(actual) == len(files)
    assert all(row["path"].startswith(f"{shard}!") for row in actual)


def test_tables_per_shard_are_resumed(
    saved: Path,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = [write_tar(tmp_path / f"data/{i}.tar", samples(files[i::3])) for i in range(3)]
    pattern, out = tmp_path / "data/*.tar", tmp_path / "tables"
    assert classify(saved, pattern, "--shards-to", out, "--format", "csv") == 0
    tables = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    assert sorted(tables) == ["0.csv", "1.csv", "2.csv"]
    assert sum(len(read(out / name)) for name in tables) == len(files)
    assert f"{len(files)} images of 3 shards, 0 of them before" in capsys.readouterr().out

    classified: list[Path] = []
    write = TableSettings.write

    def counted(self: TableSettings, classifier: ImageClassifier, shard: ShardFile, table: Path) -> dict[str, Any]:
        classified.append(shard.path)
        return write(self, classifier, shard, table)

    monkeypatch.setattr(TableSettings, "write", counted)
    assert classify(saved, pattern, "--shards-to", out, "--format", "csv") == 0
    assert classified == []
    assert "3 of them before" in capsys.readouterr().out
    # A table without its record is of an interrupted command; a shard that was replaced has another stamp.
    (out / "1.csv.json").unlink()
    write_tar(shards[2], samples(files[:1]))
    assert classify(saved, pattern, "--shards-to", out, "--format", "csv") == 0
    assert classified == [shards[1], shards[2]]
    assert (out / "1.csv").read_bytes() == tables["1.csv"]
    assert len(read(out / "2.csv")) == 1
    # With another classifier, or other columns, every table is another.
    classified.clear()
    assert classify(saved, pattern, "--shards-to", out, "--format", "csv", "--top", "2") == 0
    assert classified == shards


def test_parts_divide_the_shards(saved: Path, files: list[Path], tmp_path: Path) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"data/{i}.parquet", [file.read_bytes() for file in files[i::3]])
    for part in ("1/2", "2/2"):
        assert classify(saved, tmp_path / "data/*.parquet", "--shards-to", tmp_path / "tables", "--part", part) == 0
    names = sorted(path.name for path in (tmp_path / "tables").glob("*.parquet"))
    assert names == ["0.parquet", "1.parquet", "2.parquet"]
    rows = [row for name in names for row in pq.read_table(tmp_path / "tables" / name).to_pylist()]
    assert len(rows) == len(files)
    assert all(row["label"] for row in rows)


def test_unreadable_images_are_rows(saved: Path, files: list[Path], tmp_path: Path) -> None:
    members = [("good.png", files[0].read_bytes()), ("cut.png", files[1].read_bytes()[:100]), ("empty.jpg", b"")]
    shard = write_tar(tmp_path / "a.tar", members)
    parquet = write_parquet(tmp_path / "b.parquet", [files[0].read_bytes(), None])
    assert classify(saved, shard, parquet, "-o", tmp_path / "out.csv") == 0
    rows = read(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in rows] == [False, True, True, False, True]
    assert "the image lies elsewhere" in rows[-1]["error"]


def test_hidden_files_are_no_images(files: list[Path], tmp_path: Path) -> None:
    content = files[0].read_bytes()
    shard = write_tar(tmp_path / "a.tar", [("x/._a.png", b"macOS"), ("__meta.png", b"x"), ("x/a.png", content)])
    assert [image.content for image in shard_images(local_shard(shard))] == [content]


def test_huge_member_is_not_read(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgclip.datasets.image_shards.MAX_IMAGE_BYTES", 50)
    shard = write_tar(tmp_path / "a.tar", [("large.png", files[0].read_bytes()), ("small.png", b"x" * 10)])
    large, small = shard_images(local_shard(shard))
    assert large == ShardImage(
        f"{shard}!large.png", b"", f"it has {files[0].stat().st_size} bytes, more than any image"
    )
    assert small.content == b"x" * 10


@pytest.mark.parametrize("cut", ["inside", "between", "compressed", "parquet"])
def test_damaged_shard_is_named_after_all_others(
    saved: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: str
) -> None:
    (tmp_path / "data").mkdir()
    damaged = write_tar(tmp_path / "data/a.tar", samples(files[:3]))
    content = damaged.read_bytes()
    if cut == "inside":
        damaged.write_bytes(content[:1200])
    elif cut == "between":
        with tarfile.open(damaged) as archive:
            damaged.write_bytes(content[: archive.getmembers()[2].offset])
    elif cut == "compressed":
        damaged.unlink()
        damaged = write_tar(tmp_path / "data/a.tar.gz", samples(files[:3]), "w:gz")
        damaged.write_bytes(damaged.read_bytes()[:-200])
    else:
        damaged.unlink()
        damaged = write_parquet(tmp_path / "data/a.parquet", [file.read_bytes() for file in files[:3]])
        damaged.write_bytes(damaged.read_bytes()[:-20])
    write_tar(tmp_path / "data/b.tar", samples(files[3:]))
    out = tmp_path / "tables"
    assert classify(saved, tmp_path / "data/*", "--shards-to", out, "--format", "csv") == 1
    error = capsys.readouterr().err
    assert str(damaged) in error
    assert "\n" not in error.strip()
    assert len(read(out / "b.csv")) == len(files) - 3
    assert not (out / "a.csv").exists()
    assert classify(saved, damaged, "-o", tmp_path / "single.csv") == 1
    assert not (tmp_path / "single.csv").exists()


def test_wrong_requests_are_refused(
    saved: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(files))
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    numbers = pa.table({"x": [1], "y": ["z"]})
    pq.write_table(numbers, tmp_path / "numbers.parquet")
    out = ["--shards-to", tmp_path / "tables"]
    for arguments, message in (
        ([shard, "--move-to", tmp_path / "moved"], "lie in a shard and cannot be moved"),
        ([files[0], *out], "no shard; give tar or parquet files"),
        ([files[0].parent, *out], "no shard; give tar or parquet files"),
        ([tmp_path / "none.tar", *out], "no such file or folder"),
        ([shard, *out, "-o", tmp_path / "x.csv"], "leave out --out and --move-to"),
        ([shard, "--part", "1/2"], "needs --shards-to DIR"),
        ([shard, *out, "--part", "3/2"], "give I/N"),
        ([shard, tmp_path / "copy/a.tar", *out], "2 shards would write this table"),
        ([tmp_path / "numbers.parquet", "-o", tmp_path / "x.csv"], "one column must hold images"),
    ):
        assert classify(saved, *arguments) == 1, arguments
        error = capsys.readouterr().err
        assert message in error
        assert "\n" not in error.strip()
    assert not (tmp_path / "tables").exists()


def test_shards_are_read_as_streams(files: list[Path], tmp_path: Path) -> None:
    """The first image is there before the last one is read, and none is kept."""
    shard = write_tar(tmp_path / "a.tar", samples(files))
    stream = expand_sources(shard)
    name, first = next(stream)
    assert isinstance(first, ShardImage)
    assert name == f"{shard}!0000.png"
    assert first.content == files[0].read_bytes()
    assert len(list(stream)) == len(files) - 1


def test_records_name_the_shard(saved: Path, files: list[Path], tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(files))
    assert classify(saved, shard, "--shards-to", tmp_path / "t", "--format", "jsonl") == 0
    record = json.loads((tmp_path / "t/a.jsonl.json").read_text(encoding="utf-8"))
    assert record["shard"]["bytes"] == shard.stat().st_size
    assert record["counts"] == {"images": len(files), "unreadable": 0, "rejected": 0}
    assert len((tmp_path / "t/a.jsonl").read_text(encoding="utf-8").splitlines()) == len(files)
