"""Images in tar shards: the same images as in files, found again whatever interrupts their writing."""

import json
import os
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgclip.identity import key_of
from lgclip.image_store import ImageStore
from lgclip.shard_index import YOUNG, Member, index_of, list_shards, look, read_index
from lgclip.tar_store import Shards, ShardWriter
from lgclip.whole import WriteError

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def name(number: int) -> str:
    return key_of({"number": number})


def content(number: int, size: int | None = None) -> bytes:
    return np.random.default_rng(number).bytes(number * 97 % 1500 if size is None else size)


def write(writer: ShardWriter, numbers: Sequence[int]) -> None:
    """A batch; every fifth is a marker."""
    for number in numbers:
        if number % 5 == 4:
            writer.add_fault(name(number), content(number))
        else:
            writer.add(name(number), content(number), b"{}")
    writer.flush()


def found(folder: Path) -> dict[int, bytes]:
    """What a process that comes to the folder now finds, by number."""
    shards = Shards(folder)
    shards.refresh()
    return held(shards)


def held(shards: Shards, most: int = 700) -> dict[int, bytes]:
    ids = [name(number) for number in range(most)]
    rows = zip(shards.find(ids), shards.find(ids, faults=True), strict=True)
    assert not [1 for image, marker in rows if image and marker]
    both = [image or marker for image, marker in zip(shards.find(ids), shards.find(ids, faults=True), strict=True)]
    return {number: member.read_bytes() for number, member in enumerate(both) if member}


@settings(max_examples=30)
@given(data=st.data())
def test_what_was_written_is_found_whatever_the_batches_and_the_shards(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The oracle is a dictionary; one reader looks again and again, another comes at the end."""
    folder = tmp_path_factory.mktemp("shards")
    writers = [ShardWriter(folder, images=data.draw(st.integers(1, 9))) for _ in range(2)]
    reader, expected, number = Shards(folder), dict[int, bytes](), 0
    for _ in range(data.draw(st.integers(0, 6))):
        batch = range(number, number + data.draw(st.integers(0, 5)))
        write(data.draw(st.sampled_from(writers)), batch)
        expected |= {one: content(one) for one in batch}
        number = batch.stop
        reader.refresh()
        assert held(reader, 40) == expected
    for writer in writers[: data.draw(st.integers(0, 2))]:
        writer.close()
    assert found(folder) == expected
    list_shards(folder, now=time.time() + 2 * YOUNG)  # closes what a writer has left
    assert found(folder) == expected
    assert all(read_index(shard) for shard in folder.glob("*.tar"))


def test_a_shard_is_closed_when_it_is_full(tmp_path: Path) -> None:
    by_count, by_size = ShardWriter(tmp_path / "count", images=10), ShardWriter(tmp_path / "size", size=20_000)
    for start in range(0, 40, 5):
        write(by_count, range(start, start + 5))
        write(by_size, range(start, start + 5))
    assert [len(look(shard).ids) for shard in (tmp_path / "count").glob("*.tar")] == [10] * 4
    assert all(shard.stat().st_size < 40_000 for shard in (tmp_path / "size").glob("*.tar"))
    assert len(list((tmp_path / "size").glob("*.tar"))) > 1


def test_python_s_tarfile_reads_a_shard_and_its_samples_are_webdataset_s(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    for start in (0, 5):
        write(writer, range(start, start + 5))
        (shard,) = tmp_path.glob("*.tar")
        with tarfile.open(shard) as tar:  # at every moment, not only once it is closed
            members = {info.name: tar.extractfile(info).read() for info in tar}  # pyright: ignore
        images = [number for number in range(start + 5) if number % 5 != 4]
        assert {n: members[f"{name(n)}.png"] for n in images} == {n: content(n) for n in images}
    # A sample is what follows each other and has one name up to the first dot; `__x__/` at the beginning is no sample.
    samples = [one.partition(".") for one in members if not one.startswith("__faults__/")]
    grouped = {key: [kind for *_, kind in group] for key, group in groupby(samples, key=lambda parts: parts[0])}
    assert grouped == {name(number): ["json", "png"] for number in images}
    assert len(members) == 2 * len(images) + 2


def test_a_shard_that_is_cut_anywhere_holds_what_is_whole_and_another_goes_on(tmp_path: Path) -> None:
    write(ShardWriter(tmp_path), range(4))
    (shard,) = tmp_path.glob("*.tar")
    whole = shard.read_bytes()
    ends = {int(one.sum()) for one in look(shard).spans}
    for size in range(0, len(whole), 256):
        shard.write_bytes(whole[:size])
        there = sum(end + -end % 512 <= size for end in ends)
        assert found(tmp_path) == {n: content(n) for n in range(there)}
    write(ShardWriter(tmp_path), range(4))
    assert found(tmp_path) == {n: content(n) for n in range(4)}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "of another shard", "HTML", "stale"])
def test_an_index_that_is_missing_damaged_or_stale_loses_nothing(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ShardWriter(tmp_path)
    write(writer, range(6))
    writer.close()
    write(other := ShardWriter(tmp_path), range(10, 20))
    other.close()
    first, second = sorted(map(index_of, tmp_path.glob("*.tar")))
    data = bytearray(first.read_bytes())
    data[9] ^= 1  # of its header
    spoil = {
        "missing": first.unlink, "empty": lambda: first.write_bytes(b""), "cut": lambda: first.write_bytes(data[:-50]),
        "flipped": lambda: first.write_bytes(data), "HTML": lambda: first.write_text("<html>"),
        "of another shard": lambda: first.write_bytes(second.read_bytes()),
        "stale": lambda: grow(first.with_suffix(".tar")),
    }  # fmt: skip
    spoil[damage]()
    assert found(tmp_path) == {n: content(n) for n in (*range(6), *range(10, 20))}
    assert ("is damaged; its shard is looked through" in caplog.text) == (damage in ("empty", "cut", "flipped", "HTML"))


def grow(shard: Path) -> None:
    with shard.open("ab") as file:
        file.write(bytes(10240))  # as GNU tar pads


def script(folder: Path, body: str) -> subprocess.Popen[str]:
    """A process of its own that writes to a folder; it imports no torch."""
    here = Path(__file__).parents[1]
    code = (
        f"import os, sys; sys.path.insert(0, {str(here)!r})\nfrom pathlib import Path\n"
        "from lgclip import tar_store\nfrom lgclip.tar_store import ShardWriter\n"
        f"writer = ShardWriter(Path({str(folder)!r}), images=120)\n{body}"
    )
    return subprocess.Popen([sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, text=True)


def ids_of(numbers: range) -> list[str]:
    return [name(number) for number in numbers]


def test_two_processes_at_once_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    body = "for at in range(0, len(ids), 7):\n    for i in ids[at:at + 7]: writer.add(i, i.encode() * 50, b'{}')\n"
    body += "    writer.flush()\nwriter.close()\n"
    mine = [ids_of(range(start, start + 300)) for start in (0, 300)]
    running = [script(tmp_path, f"ids = {ids}\n{body}") for ids in mine]
    reader = Shards(tmp_path)
    while any(process.poll() is None for process in running):
        reader.refresh()  # what it finds while they write is whole
        assert all(member is None or member.read_bytes() == i.encode() * 50 for i, member in pairs(reader))
    assert [process.wait(60) for process in running] == [0, 0]
    reader.refresh()
    assert all(member and member.read_bytes() == i.encode() * 50 for i, member in pairs(reader))
    assert sum(len(look(shard).ids) for shard in tmp_path.glob("*.tar")) == 600
    for process in running:
        assert process.stdout is not None
        process.stdout.close()


def pairs(reader: Shards) -> list[tuple[str, Member | None]]:
    ids = ids_of(range(600))
    return list(zip(ids, reader.find(ids), strict=True))


def test_a_kill_in_the_middle_of_an_append_costs_at_most_the_batch(tmp_path: Path) -> None:
    """SIGKILL comes from the process itself when half of a batch is on the disk; then another process goes on."""
    for share in (0.0, 0.01, 0.5, 0.999):
        folder = tmp_path / str(share)
        half = (
            "def cut(shard, end, data):\n    with shard.open('r+b') as file:\n        file.seek(end)\n"
            f"        file.write(data[: int({share} * len(data))])\n    os.kill(os.getpid(), 9)\n"
        )
        ids = ids_of(range(30))
        batch = "for i in ids[{}:{}]: writer.add(i, i.encode() * 50, b'{{}}')\n"
        body = f"ids = {ids}\n{batch.format(0, 10)}writer.flush()\n{half}tar_store._append = cut\n"
        with script(folder, f"{body}{batch.format(10, 20)}writer.flush()\n") as killed:
            assert killed.wait(60) == -9
        first = Shards(folder)
        first.refresh()
        there = [i for i, member in zip(ids, first.find(ids), strict=True) if member]
        assert there == ids[: len(there)]
        assert 10 <= len(there) < 20
        rest = ShardWriter(folder)
        for i in ids[len(there) :]:
            rest.add(i, i.encode() * 50, b"{}")
        rest.close()
        first.refresh()
        assert [m.read_bytes() for m in first.find(ids) if m] == [i.encode() * 50 for i in ids]


def test_a_full_disk_leaves_the_shard_as_it_was(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    write(writer, range(3))
    (shard,) = tmp_path.glob("*.tar")
    before = found(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size + 600, hard))
    try:
        with pytest.raises(WriteError, match=rf"{shard.name}: File too large; make room"):
            write(writer, range(3, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found(tmp_path) == before
    write(writer, range(3, 9))
    assert found(tmp_path) == {n: content(n) for n in range(9)}


def test_an_image_has_the_same_bytes_either_way_and_either_finds_the_other_s(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    about = {"text": "a café", "seed": 3}
    plain = ImageStore(tmp_path / "files", {"a": 1})
    packed = ImageStore(tmp_path / "tar", {"a": 1}, in_shards=True)
    for store in (plain, packed):
        store.put(name(0), pixels, about)
        store.put_fault(name(1), "flat", about)
        assert store.has(name(0)) == (store is plain), "a batch is not there before it is flushed"
        store.flush()
        assert store.has(name(0))
        assert (store.fault(name(1)), store.fault(name(0))) == ("flat", None)
    (one,), (other,) = plain.places([name(0)]), packed.places([name(0)])
    assert one is not None
    assert other is not None
    assert one.read_bytes() == other.read_bytes()
    assert str(other).endswith(f".tar!{name(0)}.png")
    assert ImageStore(tmp_path / "tar", {"a": 1}).has(name(0))
    assert ImageStore(tmp_path / "files", {"a": 1}, in_shards=True).has(name(0))
    assert json.loads(Member(other.shard, "", 512, 512).read_bytes().rstrip(b"\0")) == about  # pyright: ignore
