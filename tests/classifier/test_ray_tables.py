"""Classifies shards by a Ray cluster of local nodes: tables equal those of one process, whatever is lost."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from factories import NAMES, FirstRun
from object_stores import S3Server
from ray_clusters import SETTINGS, LocalCluster, ray_environment
from web_shards import images_of, sample, write_tar

from lgclip.cli.main import main
from lgclip.reporting.run_classifier import classifier_of

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.usefixtures("own_caches")]


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """Creates the folder of the workers' temporary files; its name is short, since Ray puts sockets below it."""
    with tempfile.TemporaryDirectory(prefix="r-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(temporary: Path) -> Iterator[LocalCluster]:
    with ray_environment({**SETTINGS, "TMPDIR": str(temporary)}):
        cluster = LocalCluster(2)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def on_cluster(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return cluster


@pytest.fixture(scope="module")
def saved(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_of(first_run.folder).save(tmp_path_factory.mktemp("saved") / "classifier")


@pytest.fixture
def data(first_run: FirstRun, tmp_path: Path) -> Path:
    images = images_of(first_run.sandbox.synthetic_images)
    for number in range(4):
        members = [m for i in range(number, 12, 4) for m in sample(str(i), images[i][1], NAMES[images[i][0]])]
        write_tar(tmp_path / f"data/{number}.tar", members)
    return tmp_path / "data"


def classify(classifier: Path, *arguments: str | Path) -> int:
    return main(["classify", str(classifier), *map(str, arguments), "--labels", "cls", "--format", "csv"])


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tables_are_those_of_one_process(
    saved: Path,
    data: Path,
    on_cluster: LocalCluster,
    temporary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "here") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "ray", "--executor", "ray") == 0
    assert capsys.readouterr().out.splitlines()[-1] == last
    # Ray's workers have no end of their own at which they could delete the encoder that was sent to them.
    assert not list(temporary.rglob("*.safetensors"))
    assert tables(tmp_path / "ray") == tables(tmp_path / "here")
    (tmp_path / "ray/2.csv").unlink()
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "ray", "--executor", "ray") == 0
    assert "3 of them before" in capsys.readouterr().out
    assert tables(tmp_path / "ray") == tables(tmp_path / "here")


def test_shards_of_a_bucket(
    saved: Path, data: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in data.iterdir():
        s3.client.put_object(Bucket="prototypes", Key=f"pool/{path.name}", Body=path.read_bytes())
    url = "s3://prototypes/pool/*.tar"
    assert classify(saved, url, "--shards-to", tmp_path / "here") == 0
    # A cluster of its own, whose machines have the credentials; the name of the server comes with a task.
    server = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with ray_environment(SETTINGS):
        cluster = LocalCluster(nodes=1)
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            assert classify(saved, url, "--shards-to", tmp_path / "ray", "--executor", "ray") == 0
        finally:
            cluster.shutdown()
    assert tables(tmp_path / "ray") == tables(tmp_path / "here")


def test_errors_come_back(
    saved: Path, data: Path, on_cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "1.tar").write_bytes(b"no tar file" * 100)
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "out", "--executor", "ray") == 1
    assert f"{data}/1.tar: it is damaged or cut" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.csv")) == ["0.csv", "2.csv", "3.csv"]
    write_tar(data / "1.tar", sample("x", b"x", "tiger"))
    assert classify(saved, data / "1.tar", "--shards-to", tmp_path / "out", "--executor", "ray") == 1
    assert "the classifier has no class 'tiger'" in capsys.readouterr().err


def test_killed_worker_changes_nothing(saved: Path, data: Path, on_cluster: LocalCluster, tmp_path: Path) -> None:
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "here") == 0
    killed: list[int] = []
    over = False

    def kill() -> None:
        """Kills the first process that classifies a shard."""
        while not over and not killed:
            for process in _workers():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
            time.sleep(0.01)

    thread = Thread(target=kill)
    thread.start()
    try:
        assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "ray", "--executor", "ray") == 0
    finally:
        over = True
        thread.join()
    assert killed
    assert tables(tmp_path / "ray") == tables(tmp_path / "here")


def _workers() -> list[int]:
    """Returns the processes that run a task, by the title that Ray gives them."""
    counts: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::classify_shard"):
                counts.append(int(entry.name))
    return counts


def test_no_ray(
    saved: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> Any:
        return None

    monkeypatch.setattr("lgclip.stages.ray_cluster.find_spec", nothing)
    assert classify(saved, data / "*.tar", "--shards-to", tmp_path / "out", "--executor", "ray") == 1
    assert "--executor ray: Ray is not installed: pip install 'lgclip[ray]'" in capsys.readouterr().err
