"""Tests the formats of stored images: PNG keeps every pixel, JPEG its metadata, and both are found again."""

import json
import pickle
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from store_maintenance import collect_failure, files_of_kind

from lgclip.cli.store.inventory import Kind
from lgclip.cli.store.pack import pack, unpack
from lgclip.cli.store.verify import verify
from lgclip.diffuser.base import image_id
from lgclip.diffuser.pipeline import Diffuser
from lgclip.runtime.run_key import run_key
from lgclip.store.image_codec import DEFAULT_CODEC, JPEG, PNG, codec_of, format_of, read_metadata
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key
from lgclip.store.shard_index import index_of, list_shards, read_index, read_listing
from lgclip.types import Fault, Prompt, TargetClass

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def gradient(size: int = 64) -> np.ndarray:
    """Returns a smooth image with a border: what JPEG keeps well, and what it does not."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90)], -1)
    pixels[size // 2 :, : size // 2] = (250, 20, 30)
    return pixels.astype(np.uint8)


def metadata_of(content: bytes) -> dict[str, object]:
    with Image.open(BytesIO(content)) as image:
        return json.loads(read_metadata(image))


def prompt_of(number: int) -> Prompt:
    return Prompt(TargetClass(0, "Käfer"), f"a photo, {number}", 0)


def put_images(store: ImageStore, numbers: range) -> list[str]:
    """Stores images with the ids and the metadata of a run; returns the ids."""
    ids = []
    for number in numbers:
        prompt = prompt_of(number)
        name = image_id(store.key, prompt, 0)
        store.put(name, np.roll(gradient(), number, axis=1), {**prompt.identity(), "seed": 0, "attempt": 0})
        ids.append(name)
    store.flush()
    return ids


@pytest.mark.parametrize(
    "value", ["jpeg", "jpeg-0", "jpeg-101", "jpeg-095", "jpeg-95 ", "JPEG-95", "jpg-95", "webp", ""]
)
def test_unknown_format_is_rejected(value: str) -> None:
    message = f"diffuser.image_format={value}: choose png, or jpeg-QUALITY with a quality of 1 to 100, as in jpeg-95"
    with pytest.raises(ValueError, match="image_format") as raised:
        Diffuser("tiny:diffuser", image_format=value)
    assert str(raised.value) == message


@pytest.mark.parametrize("quality", [1, 9, 10, 95, 100])
def test_quality_is_parsed(quality: int) -> None:
    assert codec_of(f"jpeg-{quality}").quality == quality


def test_png_is_as_before() -> None:
    pixels = gradient()
    content = DEFAULT_CODEC.encode(pixels, {"class": "Käfer"})
    with Image.open(BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.info["lgclip"] == '{"class": "Käfer"}'
        np.testing.assert_array_equal(np.asarray(image), pixels)


@settings(max_examples=25)
@given(text=TEXT, quality=st.integers(1, 100))
def test_metadata_survives_every_format(text: str, quality: int) -> None:
    for image_format in ("png", f"jpeg-{quality}"):
        content = codec_of(image_format).encode(gradient(16), {"text": text})
        assert metadata_of(content) == {"text": text}


def test_long_metadata_is_divided_into_comments() -> None:
    text = "ein Satz über Käfer, " * 8000
    content = codec_of("jpeg-95").encode(gradient(16), {"text": text})
    assert metadata_of(content) == {"text": text}
    assert content.count(b"\xff\xfe") == 3, "168,000 letters, of which 16,000 take two bytes"


def test_jpeg_keeps_color_at_full_resolution() -> None:
    with Image.open(BytesIO(codec_of("jpeg-95").encode(gradient(), {}))) as image:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # pyright: ignore[reportAttributeAccessIssue]
        assert np.abs(np.asarray(image, dtype=int) - gradient()).mean() < 1.5


def test_higher_quality_is_closer() -> None:
    errors = []
    sizes = []
    for quality in (20, 60, 95):
        content = codec_of(f"jpeg-{quality}").encode(gradient(), {})
        with Image.open(BytesIO(content)) as image:
            errors.append(np.abs(np.asarray(image, dtype=int) - gradient()).mean())
        sizes.append(len(content))
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)


def test_format_is_known_by_content() -> None:
    assert format_of(codec_of("jpeg-80").encode(gradient(16), {})) is JPEG
    assert format_of(DEFAULT_CODEC.encode(gradient(16), {})) is PNG


def test_png_is_in_no_key() -> None:
    default = Diffuser("tiny:diffuser", size=64, steps=10, guidance=3.0)
    inputs = default.inputs()
    assert isinstance(inputs["diffuser"], dict)
    assert "image_format" not in inputs["diffuser"]
    jpegs = [Diffuser("tiny:diffuser", size=64, steps=10, guidance=3.0, image_format=f"jpeg-{q}") for q in (90, 95)]
    assert len({content_key(part.inputs()) for part in (default, *jpegs)}) == 3
    before = {"seed": 0, "diffuser": {"model": "a"}}
    now = {"seed": 0, "diffuser": {"model": "a", "image_format": "png"}}
    jpeg = {"seed": 0, "diffuser": {"model": "a", "image_format": "jpeg-95"}}
    assert run_key(OmegaConf.create(now)) == run_key(OmegaConf.create(before))
    assert run_key(OmegaConf.create(jpeg)) != run_key(OmegaConf.create(before))


@pytest.mark.parametrize("image_format", ["png", "jpeg-95"])
def test_cut_file_is_generated_again(image_format: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    codec = codec_of(image_format)
    store = ImageStore(tmp_path, {"format": image_format}, codec=codec)
    store.put("ab01", gradient(16), {"text": "x" * 300})
    path = store.path("ab01")
    assert path.suffix == codec.file_format.suffix
    content = path.read_bytes()
    assert store.has("ab01")
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert not store.has("ab01"), f"{size} of {len(content)} bytes"
    assert "is cut; the image is generated again" in caplog.text


def test_store_is_pickled_with_its_format(tmp_path: Path) -> None:
    store = pickle.loads(pickle.dumps(ImageStore(tmp_path, {}, in_shards=True, codec=codec_of("jpeg-90"))))
    assert store.codec == codec_of("jpeg-90")
    assert store.in_shards


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """Returns a store with PNG, JPEG and a marker as files, and its images by the name of their files."""
    for image_format in ("png", "jpeg-95"):
        store = ImageStore(tmp_path, {"format": image_format}, codec=codec_of(image_format))
        put_images(store, range(3))
        prompt = prompt_of(3)
        about = {**prompt.identity(), "seed": 0, "attempt": 0}
        store.put_fault(image_id(store.key, prompt, 0), Fault.BLACK, about)
    return tmp_path, {path.name: path.read_bytes() for path in files_of_kind(tmp_path, Kind.IMAGE)}


def test_both_formats_are_packed_and_unpacked(mixed: tuple[Path, dict[str, bytes]]) -> None:
    root, images = mixed
    assert {Path(name).suffix for name in images} == {".png", ".jpg"}
    list(verify(root))
    assert list(pack(root)) == [f"{root}: 8 images and markers in 2 shards"]
    assert not files_of_kind(root, Kind.IMAGE)
    packed = {}
    for shard in files_of_kind(root, Kind.SHARD):
        for _, is_marker, member in read_listing(shard).members(shard):
            if not is_marker:
                packed[member.name] = member.read_bytes()
    assert packed == images
    list(verify(root, manifest=True))
    assert list(unpack(root)) == [f"{root}: 8 images and markers in files"]
    assert {path.name: path.read_bytes() for path in files_of_kind(root, Kind.IMAGE)} == images
    list(verify(root))


def test_member_has_the_name_of_its_format_with_and_without_an_index(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = ImageStore(root, {"format": "jpeg"}, in_shards=True, codec=codec_of("jpeg-95"))
    ids = put_images(store, range(4))
    written = store.places(ids)  # by the process that wrote them
    store.close()
    (shard,) = files_of_kind(root, Kind.SHARD)
    listing = read_index(shard)
    assert listing is not None
    assert listing.jpegs.all()
    indexed = ImageStore(root, {"format": "jpeg"}).places(ids)
    index_of(shard).unlink()
    copy = tmp_path / "copy"  # a folder that this process has not seen
    shutil.copytree(root / "images", copy / "images")
    scanned = ImageStore(copy, {"format": "jpeg"}).places(ids)
    for places in (written, indexed, scanned):
        assert [place.name for place in places if place] == [f"{name}.jpg" for name in ids]  # pyright: ignore
    list_shards(shard.parent, now=shard.stat().st_mtime + 7200)
    list(verify(root))


def test_index_of_png_is_as_before(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    store = ImageStore(tmp_path, {}, in_shards=True)
    put_images(store, range(2))
    store.close()
    (index,) = files_of_kind(tmp_path, Kind.INDEX)
    assert load_file(index).keys() == {"ids", "spans", "faults", "shard", "sha256"}


def _as_png(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path, format="PNG")


def _repaint(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path, format="JPEG", comment=image.info["comment"].replace(b"photo, 0", b"photo, 9"))


def _strip(path: Path) -> None:
    with Image.open(path) as image:
        image.info.clear()
        image.save(path, format="JPEG")


DAMAGES = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cut|decoded"),
    "trailing": (lambda path: path.write_bytes(path.read_bytes() + b"more"), "it goes on behind its end, or is cut"),
    "png": (_as_png, "it is not a JPEG"),
    "html": (lambda path: path.write_text("<html>"), "it is not a JPEG"),
    "gray": (lambda path: Image.new("L", (8, 8)).save(path), "its mode is L, not RGB"),
    "without metadata": (_strip, "it does not say what it was made from"),
    "of another": (_repaint, "its name is not the key of what it says it was made from"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_notices_a_damaged_jpeg(damage: str, tmp_path: Path) -> None:
    store = ImageStore(tmp_path, {"format": "jpeg"}, codec=codec_of("jpeg-95"))
    first, *_ = put_images(store, range(3))
    list(verify(tmp_path))
    spoil, message = DAMAGES[damage]
    spoil(store.path(first))
    (line, *_) = collect_failure(verify(tmp_path))
    assert first in line
    assert any(part in line for part in message.split("|"))


def test_sound_images_of_a_damaged_shard_are_rescued(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, {"format": "jpeg"}, in_shards=True, codec=codec_of("jpeg-95"))
    ids = put_images(store, range(3))
    store.close()
    (shard,) = files_of_kind(tmp_path, Kind.SHARD)
    content = {name: member.read_bytes() for name, _, member in read_listing(shard).members(shard)}
    data = bytearray(shard.read_bytes())
    start = store.places(ids)[0].offset  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    data[start : start + 3] = b"xxx"
    shard.write_bytes(data)
    list(verify(tmp_path, repair=True))
    (rescued,) = files_of_kind(tmp_path, Kind.SHARD)
    members = {name: member for name, _, member in read_listing(rescued).members(rescued)}
    assert {name: member.read_bytes() for name, member in members.items()} == {name: content[name] for name in ids[1:]}
    assert {Path(member.name).suffix for member in members.values()} == {".jpg"}
