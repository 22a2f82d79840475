"""Tests images in tar shards: the same images as in files, found after any interruption."""

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

from lgclip.store.atomic import WriteError
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.shard_index import YOUNG, Member, index_of, list_shards, read_index, read_listing
from lgclip.store.tar_shards import Shards, ShardWriter

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def name(number: int) -> str:
    return content_key({"number": number})


def content(number: int, size: int | None = None) -> bytes:
    return np.random.default_rng(number).bytes(number * 97 % 1500 if size is None else size)


def write(prompt_generator: ShardWriter, numbers: Sequence[int]) -> None:
    """Writes a batch in which every fifth image is a marker."""
    for number in numbers:
        if number % 5 == 4:
            prompt_generator.add_fault(name(number), content(number))
        else:
            prompt_generator.add(name(number), content(number), b"{}")
    prompt_generator.flush()


def read_shards(folder: Path) -> dict[int, bytes]:
    """Returns what a new process finds in the folder, by number."""
    shards = Shards(folder)
    shards.refresh()
    return stored_images(shards)


def stored_images(shards: Shards, most: int = 700) -> dict[int, bytes]:
    ids = [name(number) for number in range(most)]
    rows = zip(shards.find(ids), shards.find(ids, faults=True), strict=True)
    assert not [1 for image, marker in rows if image and marker]
    both = [image or marker for image, marker in zip(shards.find(ids), shards.find(ids, faults=True), strict=True)]
    return {number: member.read_bytes() for number, member in enumerate(both) if member}


@settings(max_examples=30)
@given(data=st.data())
def test_stored_images_are_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compares with a dictionary; one reader refreshes repeatedly, another opens at the end."""
    folder = tmp_path_factory.mktemp("shards")
    writers = [ShardWriter(folder, images=data.draw(st.integers(1, 9))) for _ in range(2)]
    reader = Shards(folder)
    expected = dict[int, bytes]()
    number = 0
    for _ in range(data.draw(st.integers(0, 6))):
        batch = range(number, number + data.draw(st.integers(0, 5)))
        write(data.draw(st.sampled_from(writers)), batch)
        expected |= {image_id: content(image_id) for image_id in batch}
        number = batch.stop
        reader.refresh()
        assert stored_images(reader, 40) == expected
    for prompt_generator in writers[: data.draw(st.integers(0, 2))]:
        prompt_generator.close()
    assert read_shards(folder) == expected
    list_shards(folder, now=time.time() + 2 * YOUNG)  # closes what a writer has left
    assert read_shards(folder) == expected
    assert all(read_index(shard) for shard in folder.glob("*.tar"))


def test_full_shard_is_closed(tmp_path: Path) -> None:
    by_count = ShardWriter(tmp_path / "count", images=10)
    by_size = ShardWriter(tmp_path / "size", size=20_000)
    for start in range(0, 40, 5):
        write(by_count, range(start, start + 5))
        write(by_size, range(start, start + 5))
    assert [len(read_listing(shard).ids) for shard in (tmp_path / "count").glob("*.tar")] == [10] * 4
    assert all(shard.stat().st_size < 40_000 for shard in (tmp_path / "size").glob("*.tar"))
    assert len(list((tmp_path / "size").glob("*.tar"))) > 1


def test_shards_follow_webdataset(tmp_path: Path) -> None:
    prompt_generator = ShardWriter(tmp_path)
    for start in (0, 5):
        write(prompt_generator, range(start, start + 5))
        (shard,) = tmp_path.glob("*.tar")
        with tarfile.open(shard) as tar:  # at every moment, not only once it is closed
            members = {info.name: tar.extractfile(info).read() for info in tar}  # pyright: ignore
        images = [number for number in range(start + 5) if number % 5 != 4]
        assert {n: members[f"{name(n)}.png"] for n in images} == {n: content(n) for n in images}
    # A sample is what follows each other and has one name up to the first dot; `__x__/` at the beginning is no sample.
    samples = [member_name.partition(".") for member_name in members if not member_name.startswith("__faults__/")]
    grouped = {}
    for key, group in groupby(samples, key=lambda parts: parts[0]):
        grouped[key] = [kind for *_, kind in group]
    assert grouped == {name(number): ["json", "png"] for number in images}
    assert len(members) == 2 * len(images) + 2


def test_truncated_shard_keeps_complete_images(tmp_path: Path) -> None:
    write(ShardWriter(tmp_path), range(4))
    (shard,) = tmp_path.glob("*.tar")
    data = shard.read_bytes()
    ends = {int(span.sum()) for span in read_listing(shard).spans}
    for size in range(0, len(data), 256):
        shard.write_bytes(data[:size])
        complete_count = sum(end + -end % 512 <= size for end in ends)
        assert read_shards(tmp_path) == {n: content(n) for n in range(complete_count)}
    write(ShardWriter(tmp_path), range(4))
    assert read_shards(tmp_path) == {n: content(n) for n in range(4)}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "of another shard", "HTML", "stale"])
def test_invalid_index_is_rebuilt(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt_generator = ShardWriter(tmp_path)
    write(prompt_generator, range(6))
    prompt_generator.close()
    write(second_writer := ShardWriter(tmp_path), range(10, 20))
    second_writer.close()
    first, second = sorted(map(index_of, tmp_path.glob("*.tar")))
    data = bytearray(first.read_bytes())
    data[9] ^= 1  # of its header
    spoil = {
        "missing": first.unlink, "empty": lambda: first.write_bytes(b""), "cut": lambda: first.write_bytes(data[:-50]),
        "flipped": lambda: first.write_bytes(data), "HTML": lambda: first.write_text("<html>"),
        "of another shard": lambda: first.write_bytes(second.read_bytes()),
        "stale": lambda: append_batches(first.with_suffix(".tar")),
    }  # fmt: skip
    spoil[damage]()
    assert read_shards(tmp_path) == {n: content(n) for n in (*range(6), *range(10, 20))}
    assert ("is damaged; its shard is scanned" in caplog.text) == (damage in ("empty", "cut", "flipped", "HTML"))


def append_batches(shard: Path) -> None:
    with shard.open("ab") as file:
        file.write(bytes(10240))  # as GNU tar pads


def script(folder: Path, body: str) -> subprocess.Popen[str]:
    """Starts a process that writes to a folder without importing torch."""
    root = Path(__file__).parents[2]
    code = (
        f"import os, sys; sys.path.insert(0, {str(root)!r})\nfrom pathlib import Path\n"
        "from lgclip.store import tar_shards\nfrom lgclip.store.tar_shards import ShardWriter\n"
        f"writer = ShardWriter(Path({str(folder)!r}), images=120)\n{body}"
    )
    return subprocess.Popen([sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, text=True)


def ids_of(numbers: range) -> list[str]:
    return [name(number) for number in numbers]


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
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
    assert sum(len(read_listing(shard).ids) for shard in tmp_path.glob("*.tar")) == 600
    for process in running:
        assert process.stdout is not None
        process.stdout.close()


def pairs(reader: Shards) -> list[tuple[str, Member | None]]:
    ids = ids_of(range(600))
    return list(zip(ids, reader.find(ids), strict=True))


def test_killed_append_loses_at_most_a_batch(tmp_path: Path) -> None:
    """Kills the process when half of a batch is on the disk; then another process resumes."""
    for share in (0.0, 0.01, 0.5, 0.999):
        folder = tmp_path / str(share)
        half = (
            "def cut(shard, end, data):\n    with shard.open('r+b') as file:\n        file.seek(end)\n"
            f"        file.write(data[: int({share} * len(data))])\n    os.kill(os.getpid(), 9)\n"
        )
        ids = ids_of(range(30))
        batch = "for i in ids[{}:{}]: writer.add(i, i.encode() * 50, b'{{}}')\n"
        body = f"ids = {ids}\n{batch.format(0, 10)}writer.flush()\n{half}tar_shards._append = cut\n"
        with script(folder, f"{body}{batch.format(10, 20)}writer.flush()\n") as killed:
            assert killed.wait(60) == -9
        first = Shards(folder)
        first.refresh()
        present = [i for i, member in zip(ids, first.find(ids), strict=True) if member]
        assert present == ids[: len(present)]
        assert 10 <= len(present) < 20
        rest = ShardWriter(folder)
        for i in ids[len(present) :]:
            rest.add(i, i.encode() * 50, b"{}")
        rest.close()
        first.refresh()
        assert [m.read_bytes() for m in first.find(ids) if m] == [i.encode() * 50 for i in ids]


def test_full_disk_keeps_the_shard(tmp_path: Path) -> None:
    prompt_generator = ShardWriter(tmp_path)
    write(prompt_generator, range(3))
    (shard,) = tmp_path.glob("*.tar")
    before = read_shards(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size + 600, hard))
    try:
        with pytest.raises(WriteError, match=rf"{shard.name}: File too large; make room"):
            write(prompt_generator, range(3, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_shards(tmp_path) == before
    write(prompt_generator, range(3, 9))
    assert read_shards(tmp_path) == {n: content(n) for n in range(9)}


def test_files_and_shards_are_interchangeable(tmp_path: Path) -> None:
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
    (file,), (member,) = plain.places([name(0)]), packed.places([name(0)])
    assert file is not None
    assert member is not None
    assert file.read_bytes() == member.read_bytes()
    assert str(member).endswith(f".tar!{name(0)}.png")
    assert ImageStore(tmp_path / "tar", {"a": 1}).has(name(0))
    assert ImageStore(tmp_path / "files", {"a": 1}, in_shards=True).has(name(0))
    assert json.loads(Member(member.shard, "", 512, 512).read_bytes().rstrip(b"\0")) == about  # pyright: ignore
