"""Tests damaged generated images: detected, reported with a fix, and generated again identically."""

import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import Sandbox, computed_counts, evaluate_run, read_tree
from lightning import Trainer
from store_corruption import flip_bit, truncate, truncate_to_zero, write_html
from store_maintenance import collect_failure, files_of_kind

from lgclip.cli.store.inventory import HOUR, QUARANTINE, Kind
from lgclip.cli.store.pack import pack, unpack
from lgclip.cli.store.verify import verify
from lgclip.diffuser.base import GeneratedBatch, ImageGenerator, SyntheticImages, noise_seed
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.root import StoreError
from lgclip.store.shard_index import Member
from lgclip.types import Fault, Prompt, TargetClass

pytest_plugins = ("run_fixtures",)

SUBJECTS = [TargetClass(c, name) for c, name in enumerate("abc")]
WANTED = [Prompt(target_class, f"{target_class.name} {i}", 0) for target_class, i in product(SUBJECTS, range(3))]
FLAWED = "b 1"
"""What comes out flat at its first attempt."""


@dataclass(frozen=True)
class NoiseGenerator(ImageGenerator):
    """Generates noise and records its requests."""

    retries: int = 1
    size: int | None = None
    batch_size: int | str = 2
    requests: list[str] = field(default_factory=list)

    def inputs(self) -> dict[str, object]:
        return {"painter": "noise"}

    def load(self, device: torch.device) -> "NoiseGenerator":
        return self

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> np.ndarray:
        raise AssertionError("the stage wants to know of faults")

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        self.requests.extend(prompt.text for prompt in prompts)
        seeds = [noise_seed(prompt, seed, attempt) for prompt, attempt in zip(prompts, attempts, strict=True)]
        pixels = [np.random.default_rng(image_seed).integers(0, 256, (16, 16, 3), np.uint8) for image_seed in seeds]
        flat = [p.text == FLAWED and not attempt for p, attempt in zip(prompts, attempts, strict=True)]
        return GeneratedBatch(np.stack(pixels), [Fault.FLAT if image_seed else None for image_seed in flat])


def generate_images(root: Path, storage: str) -> tuple[list[str], SyntheticImages]:
    """Returns the requested prompts and the images."""
    quiet()
    painter = NoiseGenerator()
    synthetic_images = ImageGenerationStage(painter, root, SUBJECTS, WANTED, 0)
    synthetic_images.store.in_shards = storage == "tar"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    Stages(trainer).complete("images", synthetic_images, len(WANTED))
    synthetic_images.list_shards()
    return painter.requests, synthetic_images.synthetic_images()


def pixels(synthetic_images: SyntheticImages) -> list[bytes]:
    return [synthetic_images.image(index).tobytes() for index in range(len(synthetic_images.ids))]


def flip_in_shard(member: Path | Member | None) -> None:
    """Flips a bit of an image's pixels and keeps the time of its file."""
    assert member is not None
    file, start = (member.shard, member.offset) if isinstance(member, Member) else (member, 0)
    times = file.stat()
    flip_bit(file, 8 * (start + member.size // 2) if isinstance(member, Member) else 4 * times.st_size)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("damage", [truncate_to_zero, truncate, write_html])
def test_truncated_image_is_regenerated(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests, synthetic_images = generate_images(tmp_path, "files")
    assert sorted(requests) == sorted([*(p.text for p in WANTED), FLAWED])
    path = synthetic_images.paths[4 + 1]
    assert isinstance(path, Path)
    before = path.read_bytes()
    damage(path)
    requests, again = generate_images(tmp_path, "files")
    assert requests == [WANTED[5].text]
    assert path.read_bytes() == before
    assert (
        caplog.text.count(f"{path} is {'empty' if damage is truncate_to_zero else 'cut'}; the image is generated again")
        == 1
    )
    assert again == synthetic_images
    assert generate_images(tmp_path, "files")[0] == []


@pytest.mark.parametrize("storage", ["files", "tar"])
def test_flipped_bit_is_reported_and_repaired(storage: str, tmp_path: Path) -> None:
    _, synthetic_images = generate_images(tmp_path, storage)
    assert [isinstance(place, Member) for place in synthetic_images.paths] == [storage == "tar"] * len(WANTED)
    before = pixels(synthetic_images)
    place = synthetic_images.paths[2]
    flip_in_shard(place)
    with pytest.raises(ValueError, match=r"lgclip store verify --repair takes it out .* generates it again") as error:
        synthetic_images.image(2)
    assert str(error.value).startswith(f"{place} cannot be read as an image")
    assert [synthetic_images.image(index).tobytes() for index in range(len(WANTED)) if index != 2] == [
        *before[:2],
        *before[3:],
    ]
    (line, *_) = collect_failure(verify(tmp_path), "1 faults")
    assert ("1 of 19 files in it are faulty, first " in line) == (storage == "tar")
    assert "cannot be decoded" in line
    list(verify(tmp_path, repair=True))
    assert generate_images(tmp_path, storage)[0] == [WANTED[2].text], (
        "nothing else is generated, nor is the flaw that was marked"
    )
    assert pixels(generate_images(tmp_path, storage)[1]) == before
    list(verify(tmp_path))
    assert len(list((tmp_path / QUARANTINE).rglob("*.*"))) == (2 if storage == "tar" else 1), "the index goes along"


def test_deleted_image_is_reported(tmp_path: Path) -> None:
    for storage in ("files", "tar"):
        _, synthetic_images = generate_images(tmp_path / storage, storage)
        shutil.rmtree(tmp_path / storage)
        with pytest.raises(ValueError, match=r"cannot be read \(No such file .*generates it again"):
            synthetic_images.image(0)


def header(shard: Path) -> int:
    """Returns the offset of the JSON header of an image in the middle."""
    with tarfile.open(shard) as tar:
        return [info.offset for info in tar if info.name.endswith(".json") and "/" not in info.name][4]


def append(shard: Path, name: str) -> None:
    with tarfile.open(shard, "a", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(__file__, name)


CUT = "it is cut, or ends in the middle of a batch"
SHARD_DAMAGES: dict[str, tuple[Callable[[Path], object], str, range]] = {
    "empty": (truncate_to_zero, "it is empty", range(9, 10)),
    "HTML": (write_html, CUT, range(9, 10)),
    "cut": (truncate, CUT, range(1, 6)),
    "a bad header": (lambda p: flip_bit(p, 8 * (header(p) + 3)), r"it is damaged at byte \d+", range(1)),
    "a bad JSON": (
        lambda p: flip_bit(p, 8 * (header(p) + 514)),
        r"1 of 19 files in it are faulty, .*\.json: ",
        range(1),
    ),
    "a bit between": (lambda p: flip_bit(p, 8 * (header(p) - 1)), "its bytes are not those of the list", range(1)),
    "a tail": (lambda p: p.write_bytes(p.read_bytes() + b"x"), CUT, range(1)),
    "a foreign file": (lambda p: append(p, "notes.txt"), "it holds 'notes.txt', which belongs to no store", range(1)),
    "an image of another": (lambda p: append(p, f"{'a' * 32}.png"), r"1 of 20 files .* it is not a PNG", range(1)),
}


@pytest.mark.parametrize("case", SHARD_DAMAGES)
def test_damaged_shard_is_salvaged(case: str, tmp_path: Path) -> None:
    damage, message, lost = SHARD_DAMAGES[case]
    before = pixels(generate_images(tmp_path, "tar")[1])
    (shard,) = files_of_kind(tmp_path, Kind.SHARD)
    damage(shard)
    damaged = shard.read_bytes()
    later = time.time_ns() + 2 * HOUR
    output = "\n".join(collect_failure(verify(tmp_path, now=later)))
    assert re.search(rf"{shard.name}: {message}", output), output
    list(verify(tmp_path, repair=True, now=later))
    assert (tmp_path / QUARANTINE / shard.relative_to(tmp_path)).read_bytes() == damaged, "nothing is deleted"
    requests, synthetic_images = generate_images(tmp_path, "tar")
    assert len(set(requests)) in lost
    assert pixels(synthetic_images) == before
    list(verify(tmp_path))


def test_shard_in_use_is_no_fault(tmp_path: Path) -> None:
    generate_images(tmp_path, "tar")
    (shard,) = files_of_kind(tmp_path, Kind.SHARD)
    for baselines in (shard.with_suffix(".safetensors"), shard.with_name("manifest.json")):
        baselines.unlink()
    shard.write_bytes(shard.read_bytes()[:-2000])
    list(verify(tmp_path))
    assert CUT in collect_failure(verify(tmp_path, now=time.time_ns() + 2 * HOUR), "1 faults")[0]


def test_stale_index_is_rebuilt(tmp_path: Path) -> None:
    generate_images(tmp_path, "tar")
    (shard,) = files_of_kind(tmp_path, Kind.SHARD)
    index = shard.with_suffix(".safetensors")
    listed = shard.with_name("manifest.json")
    good = listed.read_bytes()
    flip_bit(index, 8 * (index.stat().st_size - 3))
    listed.write_text("[]")
    lines = collect_failure(verify(tmp_path), "2 faults")
    assert f"{index.name}: it tells another sum of its shard" in lines[0]
    assert f"{listed.name}: it lists no shards" in lines[1]
    list(verify(tmp_path, repair=True))
    list(verify(tmp_path, manifest=True, now=time.time_ns()))
    os.utime(shard, (0, 0))  # nobody is writing to it any more
    list(verify(tmp_path, manifest=True))
    assert listed.read_bytes() == good
    shard.unlink()
    index.unlink()
    assert any("1 shards of it are not there" in line for line in collect_failure(verify(tmp_path)))


def test_faulty_images_are_not_packed(tmp_path: Path) -> None:
    _, synthetic_images = generate_images(tmp_path, "files")
    flip_in_shard(synthetic_images.paths[3])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    with pytest.raises(StoreError, match=r"cannot be decoded.*--repair. Nothing was packed"):
        list(pack(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert not files_of_kind(tmp_path, Kind.SHARD)


def test_markers_are_packed_and_unpacked(tmp_path: Path) -> None:
    once = tmp_path / "one"
    twice = tmp_path / "twice"
    before = pixels(generate_images(once, "files")[1])
    as_files = read_tree(once)
    shutil.copytree(once, twice)
    assert list(pack(once)) == [f"{once}: 10 images and markers in 1 shard"]
    assert generate_images(once, "files")[0] == [], "the marker of the flaw was packed too"
    shutil.copytree(once, twice, dirs_exist_ok=True)
    assert list(pack(twice)) == [f"{twice}: 10 images and markers in 1 shard"]
    assert not [*files_of_kind(twice, Kind.IMAGE), *files_of_kind(twice, Kind.MARKER)]
    requests, packed = generate_images(twice, "tar")
    assert requests == []
    assert pixels(packed) == before
    assert list(unpack(twice)) == [f"{twice}: 10 images and markers in files"]
    assert read_tree(twice) == as_files


@pytest.mark.slow
def test_damaged_image_error_explains_the_repair(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = files_of_kind(sandbox.store, Kind.IMAGE)[0]
    good = image.read_bytes()
    flip_bit(image, 4 * len(good))
    shutil.rmtree(sandbox.store / "features")
    with pytest.raises(SystemExit):
        evaluate_run(sandbox, tmp_path / "run", "workers=2")
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    assert f"error: {image} cannot be read as an image" in stderr
    assert "lgclip store verify --repair" in stderr
    list(verify(sandbox.store, repair=True))
    assert computed_counts(evaluate_run(sandbox, tmp_path / "run"))["images"] == 1
    assert image.read_bytes() == good
