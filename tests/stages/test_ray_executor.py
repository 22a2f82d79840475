"""Tests `executor=ray` on real clusters of this machine: the bytes of one process, whatever is lost on the way."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import read_store
from ray_clusters import (
    SETTINGS,
    Call,
    LocalCluster,
    generate,
    image_stage,
    once_logged,
    ray_environment,
    read_calls,
)

from lgclip.stages.ray_executor import RayExecutor

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.filterwarnings("ignore::ResourceWarning")]

PER_CLASS = 32
"""Images of each of three classes."""

SECONDS = 0.04
"""Time for an image, so that a machine can be lost in between."""

GROUP = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with ray_environment(SETTINGS):
        nodes = LocalCluster(nodes=3)
        try:
            yield nodes
        finally:
            nodes.shutdown()


@pytest.fixture
def at_cluster(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    while len(cluster.nodes) < 3:  # a test before has lost one
        cluster.add_node()
    return cluster


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the store of one process."""
    folder = tmp_path_factory.mktemp("reference")
    generate(image_stage(folder / "store", folder / "log", PER_CLASS), folder / "store")
    assert len(read_calls(folder / "log")) == 3 * PER_CLASS
    return read_store(folder / "store")


def repeated(calls: list[Call]) -> Counter[tuple[int, int]]:
    """Returns the images that were generated more than once."""
    counts = Counter((call.class_index, call.repeat) for call in calls)
    return Counter({image: count for image, count in counts.items() if count > 1})


def test_three_nodes_give_the_bytes_of_one_process(
    at_cluster: LocalCluster, reference: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    # Waits for the third worker, which may be late on a busy machine.
    stage = image_stage(store, tmp_path / "log", PER_CLASS, seconds=SECONDS, until_nodes=3)
    stages = generate(stage, store, RayExecutor(shard=8))
    calls = read_calls(tmp_path / "log")
    assert read_store(store) == reference
    assert not repeated(calls)
    assert {call.node for call in calls} == {node.node_id for node in at_cluster.nodes}
    stats = stages.stage_stats[0]
    assert (stats.computed, stats.devices, stats.device) == (3 * PER_CLASS, 3, "cpu")
    assert stats.peak_memory is not None


def test_killed_actor_loses_its_shard_alone(
    at_cluster: LocalCluster, reference: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    log = tmp_path / "log"
    killed: list[int] = []

    def kill(calls: list[Call]) -> None:
        killed.append(calls[-1].process)
        os.kill(calls[-1].process, signal.SIGKILL)

    with once_logged(log, 20, kill):
        # Waits for the third worker, which may be late on a busy machine.
        stage = image_stage(store, log, PER_CLASS, seconds=SECONDS, until_nodes=3)
        generate(stage, store, RayExecutor(shard=8))
    assert read_store(store) == reference
    # A batch of four is what is generated again; what the actor had stored is not.
    assert len(repeated(read_calls(log))) <= GROUP
    assert "a worker was lost; its shard is computed again" in caplog.text
    assert len({call.process for call in read_calls(log)} - set(killed)) >= 2


def test_lost_node_loses_its_shard_alone(at_cluster: LocalCluster, reference: dict[str, bytes], tmp_path: Path) -> None:
    store = tmp_path / "store"
    log = tmp_path / "log"
    lost: list[str] = []

    def kill(calls: list[Call]) -> None:
        lost.append(calls[-1].node)
        at_cluster.kill_node(calls[-1].node)

    with once_logged(log, 20, kill):
        generate(image_stage(store, log, PER_CLASS, seconds=SECONDS), store, RayExecutor(shard=8))
    calls = read_calls(log)
    assert read_store(store) == reference
    assert len(repeated(calls)) <= GROUP
    assert {call.node for call in calls[-8:]}.isdisjoint(lost)


def test_late_node_gets_work(at_cluster: LocalCluster, reference: dict[str, bytes], tmp_path: Path) -> None:
    for node in at_cluster.nodes[1:]:
        at_cluster.kill_node(node.node_id)
    store = tmp_path / "store"
    log = tmp_path / "log"
    joined: list[str] = []
    stage = image_stage(store, log, PER_CLASS, seconds=SECONDS, until_nodes=2)
    with once_logged(log, 8, lambda calls: joined.append(at_cluster.add_node())):
        generate(stage, store, RayExecutor(shard=8))
    assert read_store(store) == reference
    assert not repeated(read_calls(log))
    assert set(joined) < {call.node for call in read_calls(log)}
    at_cluster.kill_node(joined[0])  # it ends with the thread that has started it


def test_poisoned_prompt_is_tried_three_times_and_named(
    at_cluster: LocalCluster, reference: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    log = tmp_path / "log"
    stage = image_stage(store, log, PER_CLASS, poison=(("green ring", 5),), batch_size=1, size=512)
    with pytest.raises(ValueError, match="images: 1 image failed 3 times: class 1") as caught:
        generate(stage, store, RayExecutor(shard=1))
    named = "('green ring'), the prompt 'a photo of a green ring', repeat 5: RuntimeError: boom; all others are stored"
    assert named in str(caught.value)
    assert repeated(read_calls(log)) == {(1, 5): 3}
    lacking = reference.keys() - read_store(store).keys()
    assert len(lacking) == 1
    assert read_store(store).items() <= reference.items()
    # The cost log has what was computed before the error.
    assert stage.store.cost_log.read_text(encoding="utf-8").count('"count": 95') == 1


def test_poisoned_prompt_is_found_in_its_shard(
    at_cluster: LocalCluster, reference: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    log = tmp_path / "log"
    # Two workers too many, which no shard may wait for.
    executor = RayExecutor(shard=16, actors=5)
    with pytest.raises(ValueError, match=r"images: 1 image failed 3 times: class 2 \('red star'\).*repeat 30: Runtime"):
        generate(image_stage(store, log, PER_CLASS, poison=(("red star", 30),)), store, executor)
    assert len(reference.keys() - read_store(store).keys()) == 1
    assert read_store(store).items() <= reference.items()
    # The next run continues with it.
    generate(image_stage(store, log, PER_CLASS), store, RayExecutor(shard=16))
    assert read_store(store) == reference
