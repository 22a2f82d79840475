"""Tests `executor=ray` with a store on S3: workers upload what they compute, each through the cache of its machine."""

import pytest
from factories import FirstRun, computed_counts, evaluate_run
from object_stores import S3Server
from ray_clusters import SETTINGS, LocalCluster, ray_environment
from web_shards import images_of, write_web_dataset

from lgclip.cli.store.inventory import Kind, walk
from lgclip.store import remote, tar_shards
from lgclip.store.root import root_of

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

URL = "s3://prototypes/team"
NOTHING = {"prompts": 0, "images": 0, "features": 0}


def overrides_of(first_run: FirstRun) -> list[str]:
    """Returns the first run's overrides with a store on S3."""
    local = [part for part in first_run.sandbox.evaluate_overrides() if not part.startswith("paths.store")]
    return [*local, f"paths.store={URL}"]


def forget_caches() -> None:
    """Continues with the caches that the environment names now."""
    remote._mirror.cache_clear()
    remote._used.clear()
    tar_shards.shards_in.cache_clear()


def test_workers_fill_the_object_store(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    with ray_environment(SETTINGS):
        cluster = LocalCluster(nodes=2)
        try:
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            result = evaluate_run(overrides_of(first_run), folder / "ray", "executor=ray", "executor.shard=4")
        finally:
            cluster.shutdown()
    assert computed_counts(result) == computed_counts(first_run.result)
    assert result["metrics"] == first_run.result["metrics"]
    kinds = [item.kind for item in walk(root_of(URL))]
    assert kinds.count(Kind.IMAGE) == 0
    # Another machine, without Ray: all that the workers computed is in the bucket.
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "second"))
    forget_caches()
    again = evaluate_run(overrides_of(first_run), folder / "second run")
    assert computed_counts(again) == NOTHING
    assert again["metrics"] == result["metrics"]


def test_other_cache_folder_on_a_machine_is_an_error(
    s3: S3Server,
    first_run: FirstRun,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    with ray_environment(SETTINGS):
        cluster = LocalCluster(nodes=1)
        try:
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "elsewhere"))
            forget_caches()
            with pytest.raises(SystemExit):
                evaluate_run(overrides_of(first_run), folder / "run", "executor=ray")
        finally:
            cluster.shutdown()
    assert "set XDG_CACHE_HOME to the same folder on all machines" in capsys.readouterr().err
    assert not s3.objects("team/images")


def test_workers_read_shards_of_a_bucket(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    root = write_web_dataset(folder / "birds", images_of(first_run.sandbox.synthetic_images))
    for path in root.rglob("*"):
        if path.is_file():
            key = f"birds/{path.relative_to(root).as_posix()}"
            s3.client.put_object(Bucket="prototypes", Key=key, Body=path.read_bytes())
    overrides = [part for part in first_run.sandbox.evaluate_overrides() if not part.startswith("dataset")]
    data = ["dataset=webdataset", "dataset.root=s3://prototypes/birds"]
    stores = {name: f"paths.store={folder / name}" for name in ("ray", "local")}
    for store in stores:
        (folder / store).mkdir()
    with ray_environment(SETTINGS):
        cluster = LocalCluster(nodes=2)
        try:
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            result = evaluate_run(
                [*overrides, *data, stores["ray"]], folder / "run", "executor=ray", "executor.shard=4"
            )
        finally:
            cluster.shutdown()
    local = evaluate_run([*overrides, *data, stores["local"]], folder / "local run")
    assert result["metrics"] == local["metrics"]
    assert result["dataset"]["fingerprint"] == local["dataset"]["fingerprint"]
    assert computed_counts(result) == computed_counts(local)
