"""Evaluates a classifier on labelled shards, one table per shard, and classifies shards of object stores."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import NAMES, FirstRun
from object_stores import S3Server
from web_shards import images_of, sample, write_tar

from lgclip.classifier.shard_labels import ClassCounts
from lgclip.cli.main import main
from lgclip.reporting.classifier_evaluation import evaluate_classifier
from lgclip.reporting.run_classifier import classifier_of

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def saved(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves the classifier of the first run."""
    return classifier_of(first_run.folder).save(tmp_path_factory.mktemp("saved") / "classifier")


@pytest.fixture
def images(first_run: FirstRun) -> list[tuple[int, bytes]]:
    """Returns label and content of the images of the first run's data set."""
    return images_of(first_run.sandbox.synthetic_images)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(name.upper() for name in NAMES))
    return path


def classify(classifier: Path, *arguments: str | Path) -> int:
    return main(["classify", str(classifier), *map(str, arguments)])


def write_shards(folder: Path, images: Sequence[tuple[int, bytes]], shards: int = 3) -> Path:
    for number in range(shards):
        part = range(number, len(images), shards)
        members = [member for i in part for member in sample(f"{i:04d}", images[i][1], images[i][0])]
        write_tar(folder / f"{number}.tar", members)
    return folder


def read(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def test_accuracy_is_that_of_a_folder(
    saved: Path,
    first_run: FirstRun,
    images: list[tuple[int, bytes]],
    names: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = evaluate_classifier(classifier_of(first_run.folder), first_run.sandbox.synthetic_images)
    shards = write_shards(tmp_path / "data", images) / "*.tar"
    options = ["--shards-to", tmp_path / "out", "--format", "csv", "--labels", "cls", "--names", names]
    assert classify(saved, shards, *options) == 0
    output = capsys.readouterr().out
    low, high = expected.metrics.top1_ci95
    assert (
        f"top-1 {100 * expected.metrics.top1:.1f}% (95% interval {100 * low:.1f} - {100 * high:.1f}), mean per class "
        f"{100 * expected.metrics.mean_per_class:.1f}% of 3 classes, {len(images)} images"
    ) in output
    rows = read(tmp_path / "out")
    assert sum(row["label"] == row["true_label"] for row in rows) == round(expected.metrics.top1 * len(images))
    assert {row["true_label"] for row in rows} == set(NAMES)
    # Resumed, the counts are those of the records.
    assert classify(saved, shards, *options) == 0
    again = capsys.readouterr().out
    assert output.splitlines()[-1] == again.splitlines()[-1]
    assert "3 of them before" in again
    # Tables without labels are others.
    assert classify(saved, shards, "--shards-to", tmp_path / "out", "--format", "csv") == 0
    assert "0 of them before" in capsys.readouterr().out
    assert "true_label" not in read(tmp_path / "out")[0]


def test_labels_of_parquet_are_a_column(
    saved: Path, images: list[tuple[int, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = pa.array([{"bytes": content, "path": "x.png"} for _, content in images])
    features = {"label": {"_type": "ClassLabel", "names": list(NAMES)}}
    table = pa.table({"image": column, "label": [label for label, _ in images]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    options = ["--shards-to", tmp_path / "out", "--format", "csv", "--labels"]
    assert classify(saved, tmp_path / "a.parquet", *options, "label") == 0
    assert [row["true_label"] for row in read(tmp_path / "out")] == [NAMES[label] for label, _ in images]
    assert "of 3 classes, 12 images" in capsys.readouterr().out
    assert classify(saved, tmp_path / "a.parquet", *options, "class") == 1
    assert "there is no column 'class' of labels; it has image, label" in capsys.readouterr().err


def test_unreadable_images_are_not_counted(
    saved: Path, images: list[tuple[int, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [*sample("a", images[0][1], NAMES[0]), *sample("b", images[0][1][:50], NAMES[1])]
    write_tar(tmp_path / "a.tar", members)
    options = ["--shards-to", tmp_path / "out", "--format", "csv", "--labels", "cls"]
    assert classify(saved, tmp_path / "a.tar", *options) == 0
    output = capsys.readouterr().out
    assert "of 1 classes, 1 images" in output
    assert "1 could not be read" in output
    assert [row["true_label"] for row in read(tmp_path / "out")] == list(NAMES[:2])


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([("a.png", b"x"), ("a.cls", b"1")], ["--labels", "cls"], "the classifier has no class '1'; its classes are"),
        ([("a.png", b"x"), ("a.cls", b"7")], ["--labels", "cls", "--names", "NAMES"], "class 7 is none of the 3"),
        ([("a.png", b"x")], ["--labels", "cls"], "sample a has no label (cls); its files end in png. Say what holds"),
        ([("a.png", b"x"), ("a.jpg", b"x")], ["--labels", "cls"], "sample a has 2 images"),
        ([("a.png", b"x")], ["--labels", "json"], "--labels=json: give an extension such as cls"),
        ([("a.png", b"x")], ["--names", "NAMES"], "needs --labels"),
        ([("a.png", b"x")], ["--labels", "cls", "--names", "absent.txt"], "--names=absent.txt: no such file"),
        ([("a.png", b"x")], ["--executor", "ray", "--part", "1/2"], "with --executor ray the cluster divides"),
    ],
)
def test_wrong_labels_are_refused(
    saved: Path,
    names: Path,
    members: list[tuple[str, bytes]],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tar(tmp_path / "a.tar", members)
    chosen = [str(names) if option == "NAMES" else option for option in options]
    assert classify(saved, tmp_path / "a.tar", "--shards-to", tmp_path / "out", *chosen) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "\n" not in error.strip()
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize("option", [("--labels", "cls"), ("--executor", "ray")])
def test_options_of_shards_need_a_folder(
    saved: Path, option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify(saved, tmp_path / "a.tar", *option) == 1
    assert "it concerns shards, and needs --shards-to DIR" in capsys.readouterr().err


def test_counts_add_up() -> None:
    counts = ClassCounts()
    counts.update({"a": [3, 1], "b": [1, 1]})
    counts.add("a", is_correct=True)
    assert counts.counts == {"a": [4, 2], "b": [1, 1]}
    assert str(counts) == "top-1 60.0% (95% interval 23.1 - 88.2), mean per class 75.0% of 2 classes, 5 images"


def upload(folder: Path, server: S3Server) -> str:
    for path in folder.iterdir():
        server.client.put_object(Bucket="prototypes", Key=f"pool/{path.name}", Body=path.read_bytes())
    server.requests.clear()
    return "s3://prototypes/pool"


def test_shards_of_a_bucket_have_the_same_tables(
    saved: Path, images: list[tuple[int, bytes]], s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_shards(tmp_path / "data", images)
    url = upload(data, s3)
    shutil.copy(data / "0.tar", tmp_path / "0.tar")
    format_of = ["--format", "csv"]
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "here", *format_of) == 0
    assert classify(saved, f"{url}/*.tar", "--shards-to", tmp_path / "there", *format_of) == 0
    expected = [{**row, "path": row["path"].replace(str(data), url)} for row in read(tmp_path / "here")]
    assert read(tmp_path / "there") == expected
    assert s3.counts()["GET"] == 3
    # A complete table needs no download.
    s3.requests.clear()
    assert classify(saved, f"{url}/{{0..2}}.tar", "--shards-to", tmp_path / "there", *format_of) == 0
    assert s3.counts()["GET"] == 0
    assert classify(saved, f"{url}/[0].tar", "-o", tmp_path / "single.csv") == 0
    assert "4 images classified" in capsys.readouterr().out
    for wrong, message in (
        (f"{url}/0.png", "addresses are not fetched"),
        ("http://localhost/0.tar", "images=http://...: choose s3://"),
        (f"{url}/9.tar", "there is no s3://prototypes/pool/9.tar"),
        (f"{url}/x*.tar", "no file fits"),
    ):
        assert classify(saved, wrong, "-o", tmp_path / "x.csv") == 1
        assert message in capsys.readouterr().err


def test_lost_shard_is_named_after_all_others(
    saved: Path, images: list[tuple[int, bytes]], s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = upload(write_shards(tmp_path / "data", images), s3)
    s3.client.put_object(Bucket="prototypes", Key="pool/1.tar", Body=b"not a tar file" * 100)
    assert classify(saved, f"{url}/*.tar", "--shards-to", tmp_path / "out", "--format", "csv") == 1
    captured = capsys.readouterr()
    assert f"{url}/1.tar: it is damaged or cut" in captured.err
    assert f"{url}/1.tar: not classified" in captured.out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.csv")) == ["0.csv", "2.csv"]
