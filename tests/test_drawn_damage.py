"""Drawn images that are damaged where they lie: noticed, told with the way out, and drawn again as they were."""

import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from custody_damages import cut, empty, flip, html
from custody_stores import fails, files
from lightning import Trainer
from worlds import World, judge, made, tree

from lgclip.batch import Prompt, Subject
from lgclip.diffuser.base import Drawn, Pictures, noise_seed
from lgclip.diffuser.faults import Fault
from lgclip.drawing import Drawing
from lgclip.inventory import HOUR, QUARANTINE, Kind
from lgclip.packing import pack, unpack
from lgclip.shard_index import Member
from lgclip.stages import StageBar, Stages, quiet
from lgclip.store import StoreError
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)

SUBJECTS = [Subject(c, name) for c, name in enumerate("abc")]
WANTED = [Prompt(c, f"{name} {i}", 0) for c, name in enumerate("abc") for i in range(3)]
FLAWED = "b 1"
"""What comes out flat at its first attempt."""


@dataclass(frozen=True)
class Painter:
    """Draws noise, and tells what it was asked for."""

    retries: int = 1
    size: int | None = None
    batch_size: int = 2
    asked: list[str] = field(default_factory=list)

    def inputs(self) -> dict[str, object]:
        return {"painter": "noise"}

    def load(self, device: torch.device) -> "Painter":
        return self

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> np.ndarray:
        raise AssertionError("the stage wants to know of faults")

    def draw(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> Drawn:
        self.asked.extend(prompt.text for prompt in prompts)
        seeds = [noise_seed(prompt, seed, attempt) for prompt, attempt in zip(prompts, attempts, strict=True)]
        pixels = [np.random.default_rng(one).integers(0, 256, (16, 16, 3), np.uint8) for one in seeds]
        flat = [p.text == FLAWED and not attempt for p, attempt in zip(prompts, attempts, strict=True)]
        return Drawn(np.stack(pixels), [Fault.FLAT if one else None for one in flat])


def draw(root: Path, kept: str) -> tuple[list[str], Pictures]:
    """What had to be drawn, and the images."""
    quiet()
    painter = Painter()
    drawing = Drawing(painter, root, SUBJECTS, WANTED, 0)
    drawing.store.in_shards = kept == "tar"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    Stages(trainer).complete("images", drawing, len(WANTED))
    drawing.list_shards()
    return painter.asked, drawing.pictures()


def pixels(pictures: Pictures) -> list[bytes]:
    return [pictures.image(at).tobytes() for at in range(len(pictures.ids))]


def flip_in(member: Path | Member) -> None:
    """Flips a bit of the pixels of an image, and leaves its file as old as it was."""
    file, start = (member.shard, member.offset) if isinstance(member, Member) else (member, 0)
    times = file.stat()
    flip(file, 8 * (start + member.size // 2) if isinstance(member, Member) else 4 * times.st_size)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("damage", [empty, cut, html])
def test_a_file_that_is_plainly_cut_is_drawn_again_with_a_message(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, pictures = draw(tmp_path, "files")
    assert sorted(asked) == sorted([*(p.text for p in WANTED), FLAWED])
    path = pictures.paths[4 + 1]
    assert isinstance(path, Path)
    before = path.read_bytes()
    damage(path)
    asked, again = draw(tmp_path, "files")
    assert asked == [WANTED[5].text]
    assert path.read_bytes() == before
    assert caplog.text.count(f"{path} is {'empty' if damage is empty else 'cut'}; the image is drawn again") == 1
    assert again == pictures
    assert draw(tmp_path, "files")[0] == []


@pytest.mark.parametrize("kept", ["files", "tar"])
def test_a_flipped_bit_is_an_error_that_names_the_image_and_a_repair_has_it_drawn_again(
    kept: str, tmp_path: Path
) -> None:
    _, pictures = draw(tmp_path, kept)
    assert [isinstance(place, Member) for place in pictures.paths] == [kept == "tar"] * len(WANTED)
    before = pixels(pictures)
    place = pictures.paths[2]
    flip_in(place)
    with pytest.raises(ValueError, match=r"lgclip store verify --repair takes it out .* draws it again") as error:
        pictures.image(2)
    assert str(error.value).startswith(f"{place} cannot be read as an image")
    assert [pictures.image(at).tobytes() for at in range(len(WANTED)) if at != 2] == [*before[:2], *before[3:]]
    (told, *_) = fails(verify(tmp_path), "1 faults")
    assert ("1 of 19 files in it are faulty, first " in told) == (kept == "tar")
    assert "does not decode" in told
    list(verify(tmp_path, repair=True))
    assert draw(tmp_path, kept)[0] == [WANTED[2].text], "nothing else is drawn, nor is the flaw that was marked"
    assert pixels(draw(tmp_path, kept)[1]) == before
    list(verify(tmp_path))
    assert len(list((tmp_path / QUARANTINE).rglob("*.*"))) == (2 if kept == "tar" else 1), "the index goes along"


def test_an_image_that_has_gone_since_is_said(tmp_path: Path) -> None:
    for kept in ("files", "tar"):
        _, pictures = draw(tmp_path / kept, kept)
        shutil.rmtree(tmp_path / kept)
        with pytest.raises(ValueError, match=r"cannot be read \(No such file .*draws again"):
            pictures.image(0)


def header(shard: Path) -> int:
    """Where the header of the JSON of an image in the middle begins."""
    with tarfile.open(shard) as tar:
        return [info.offset for info in tar if info.name.endswith(".json") and "/" not in info.name][4]


def append(shard: Path, name: str) -> None:
    with tarfile.open(shard, "a", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(__file__, name)


CUT = "it is cut, or ends in the middle of a batch"
SHARD_DAMAGES: dict[str, tuple[Callable[[Path], object], str, range]] = {
    "empty": (empty, "it is empty", range(9, 10)),
    "HTML": (html, CUT, range(9, 10)),
    "cut": (cut, CUT, range(1, 6)),
    "a bad header": (lambda p: flip(p, 8 * (header(p) + 3)), r"it is damaged at byte \d+", range(1)),
    "a bad JSON": (lambda p: flip(p, 8 * (header(p) + 514)), r"1 of 19 files in it are faulty, .*\.json: ", range(1)),
    "a bit between": (lambda p: flip(p, 8 * (header(p) - 1)), "its bytes are not those of the list", range(1)),
    "a tail": (lambda p: p.write_bytes(p.read_bytes() + b"x"), CUT, range(1)),
    "a foreign file": (lambda p: append(p, "notes.txt"), "it holds 'notes.txt', which belongs to no store", range(1)),
    "an image of another": (lambda p: append(p, f"{'a' * 32}.png"), r"1 of 20 files .* it is no PNG", range(1)),
}  # fmt: skip


@pytest.mark.parametrize("what", SHARD_DAMAGES)
def test_a_damaged_shard_is_found_what_is_whole_is_saved_and_the_rest_drawn_again(what: str, tmp_path: Path) -> None:
    damage, told, lost = SHARD_DAMAGES[what]
    before = pixels(draw(tmp_path, "tar")[1])
    (shard,) = files(tmp_path, Kind.SHARD)
    damage(shard)
    damaged, later = shard.read_bytes(), time.time_ns() + 2 * HOUR
    said = "\n".join(fails(verify(tmp_path, now=later)))
    assert re.search(rf"{shard.name}: {told}", said), said
    list(verify(tmp_path, repair=True, now=later))
    assert (tmp_path / QUARANTINE / shard.relative_to(tmp_path)).read_bytes() == damaged, "nothing is deleted"
    asked, pictures = draw(tmp_path, "tar")
    assert len(set(asked)) in lost
    assert pixels(pictures) == before
    list(verify(tmp_path))


def test_a_shard_that_is_being_written_is_no_fault_until_nobody_can_be_writing_it(tmp_path: Path) -> None:
    draw(tmp_path, "tar")
    (shard,) = files(tmp_path, Kind.SHARD)
    for beside in (shard.with_suffix(".safetensors"), shard.with_name("manifest.json")):
        beside.unlink()
    shard.write_bytes(shard.read_bytes()[:-2000])
    list(verify(tmp_path))
    assert CUT in fails(verify(tmp_path, now=time.time_ns() + 2 * HOUR), "1 faults")[0]


def test_an_index_or_a_list_that_does_not_fit_is_found_and_made_again(tmp_path: Path) -> None:
    draw(tmp_path, "tar")
    (shard,) = files(tmp_path, Kind.SHARD)
    index, listed = shard.with_suffix(".safetensors"), shard.with_name("manifest.json")
    good = listed.read_bytes()
    flip(index, 8 * (index.stat().st_size - 3))
    listed.write_text("[]")
    said = fails(verify(tmp_path), "2 faults")
    assert f"{index.name}: it tells another sum of its shard" in said[0]
    assert f"{listed.name}: it lists no shards" in said[1]
    list(verify(tmp_path, repair=True))
    list(verify(tmp_path, manifest=True, now=time.time_ns()))
    os.utime(shard, (0, 0))  # nobody is writing to it any more
    list(verify(tmp_path, manifest=True))
    assert listed.read_bytes() == good
    shard.unlink()
    index.unlink()
    assert any("1 shards of it are not there" in line for line in fails(verify(tmp_path)))


def test_what_is_faulty_is_not_packed(tmp_path: Path) -> None:
    _, pictures = draw(tmp_path, "files")
    flip_in(pictures.paths[3])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    with pytest.raises(StoreError, match=r"does not decode.*--repair. Nothing was packed"):
        list(pack(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert not files(tmp_path, Kind.SHARD)


def test_markers_are_packed_and_unpacked_too_and_images_that_lie_twice_once(tmp_path: Path) -> None:
    one, twice = tmp_path / "one", tmp_path / "twice"
    before = pixels(draw(one, "files")[1])
    as_files = tree(one)
    shutil.copytree(one, twice)
    assert list(pack(one)) == [f"{one}: 10 images and markers in 1 shard"]
    assert draw(one, "files")[0] == [], "the marker of the flaw was packed too"
    shutil.copytree(one, twice, dirs_exist_ok=True)
    assert list(pack(twice)) == [f"{twice}: 10 images and markers in 1 shard"]
    assert not [*files(twice, Kind.IMAGE), *files(twice, Kind.MARKER)]
    asked, packed = draw(twice, "tar")
    assert asked == []
    assert pixels(packed) == before
    assert list(unpack(twice)) == [f"{twice}: 10 images and markers in files"]
    assert tree(twice) == as_files


def test_a_run_over_a_damaged_image_is_one_line_and_the_way_out_works(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = files(world.store, Kind.IMAGE)[0]
    good = image.read_bytes()
    flip(image, 4 * len(good))
    shutil.rmtree(world.store / "features")
    with pytest.raises(SystemExit):
        judge(world, tmp_path / "run", "workers=2")
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"error: {image} cannot be read as an image" in said
    assert "lgclip store verify --repair" in said
    list(verify(world.store, repair=True))
    assert made(judge(world, tmp_path / "run"))["images"] == 1
    assert image.read_bytes() == good
