"""Lists corruptions of a store's files and the messages they cause."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lgclip.cli.store.inventory import Kind
from lgclip.store.checksums import checksum_of, with_checksum


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def edit_json(path: Path, **changes: object) -> None:
    content = {**json.loads(path.read_text()), **changes}
    if content.pop("checksum", None):
        content = with_checksum(content)
    path.write_text(json.dumps(content))


def write_html(path: Path) -> None:
    path.write_text("<!doctype html><title>404</title>")


def truncate_to_zero(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 3)])


def append_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"and more")


def swap_files(path: Path) -> None:
    folder = path.parent if path.suffix == ".json" else path.parent.parent
    other_path = next(other_path for other_path in sorted(folder.rglob(f"*{path.suffix}")) if other_path != path)
    mine = path.read_bytes()
    its = other_path.read_bytes()
    path.write_bytes(its)
    other_path.write_bytes(mine)


def rewrite_image(path: Path, mode: str = "RGB", text: str | None = None) -> None:
    with Image.open(path) as image:
        metadata = image.info["lgclip"]
        painted = image.convert(mode)
    about = PngInfo()
    if text != "":
        about.add_itxt("lgclip", metadata if text is None else text)
    painted.save(path, pnginfo=about)


def write_image_bomb(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    path.write_bytes(data)


def rewrite_features(path: Path, change: Callable[[np.ndarray], np.ndarray], **header: object) -> None:
    with safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["lgclip"])
    features = change(load_file(path)["features"])
    about = {**about, **header, "checksum": checksum_of({"features": features})}
    save_file({"features": features}, path, {"lgclip": json.dumps(about)})


def change_letter(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["prompts"][0] += "x"
    path.write_text(json.dumps(content), encoding="utf-8")


def flip_sign(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)


def set_first_nan(x: np.ndarray) -> np.ndarray:
    x[0, 0, 0] = np.nan
    return x


OTHER_IMAGE = {"class": "x", "occurrence": 0, "text": "x", "repeat": 0, "seed": 0, "attempt": 0}

CORRUPTIONS: dict[str, tuple[Kind, Callable[[Path], object], str]] = {
    "an empty image": (Kind.IMAGE, truncate_to_zero, "empty"),
    "a cut image": (Kind.IMAGE, truncate, "cannot be decoded|is not a PNG"),
    "an image with a tail": (Kind.IMAGE, append_bytes, "goes on behind its end"),
    "HTML for an image": (Kind.IMAGE, write_html, "not a PNG"),
    "a JPEG for an image": (Kind.IMAGE, lambda p: Image.new("RGB", (9, 9)).save(p, "JPEG"), "not a PNG"),
    "two images swapped": (Kind.IMAGE, swap_files, "not the key of what it says"),
    "a grey image": (Kind.IMAGE, lambda p: rewrite_image(p, "L"), "mode is L"),
    "an image without its text": (Kind.IMAGE, lambda p: rewrite_image(p, text=""), "does not say what"),
    "an image whose text is no JSON": (Kind.IMAGE, lambda p: rewrite_image(p, text="{"), "does not say what"),
    "an image whose text is a list": (Kind.IMAGE, lambda p: rewrite_image(p, text="[]"), "does not say what"),
    "an image whose text is edited": (
        Kind.IMAGE,
        lambda p: rewrite_image(p, text=json.dumps(OTHER_IMAGE)),
        "not the key",
    ),
    "a decompression bomb": (Kind.IMAGE, write_image_bomb, "far too large"),
    "empty prompts": (Kind.PROMPTS, truncate_to_zero, "empty"),
    "cut prompts": (Kind.PROMPTS, truncate, "not JSON"),
    "two prompts swapped": (Kind.PROMPTS, swap_files, "not the key of its inputs"),
    "prompts of an edited class": (Kind.PROMPTS, lambda p: edit_json(p, inputs={"class": "x"}), "not the key"),
    "prompts without inputs": (Kind.PROMPTS, lambda p: edit_json(p, inputs=None), "does not say what"),
    "prompts that are a word": (Kind.PROMPTS, lambda p: edit_json(p, prompts="a photo"), "not a list of sentences"),
    "prompts that are numbers": (Kind.PROMPTS, lambda p: edit_json(p, prompts=[1]), "not a list of sentences"),
    "prompts with a changed letter": (Kind.PROMPTS, change_letter, "checksum is missing or wrong"),
    "prompts in a list": (Kind.PROMPTS, lambda p: p.write_text("[]"), "no JSON object"),
    "deep prompts": (Kind.PROMPTS, lambda p: p.write_text("[" * 99_999), "not JSON"),
    "empty features": (Kind.FEATURES, truncate_to_zero, "empty"),
    "cut features": (Kind.FEATURES, truncate, "header cannot be read, or it is cut"),
    "features with a tail": (Kind.FEATURES, append_bytes, "header cannot be read"),
    "HTML for features": (Kind.FEATURES, write_html, "header cannot be read"),
    "features under a wrong name": (Kind.FEATURES, lambda p: p.replace(p.with_stem("0" * 32)), "not the key of its"),
    "features of an older schema": (
        Kind.FEATURES,
        lambda p: rewrite_features(p, lambda x: x, schema=0),
        "schema 0, this",
    ),
    "features with other ids": (
        Kind.FEATURES,
        lambda p: rewrite_features(p, lambda x: x, ids=["a"]),
        "not F32 of 1 ids",
    ),
    "features in half precision": (Kind.FEATURES, lambda p: rewrite_features(p, lambda x: x.astype(np.float16)), "F16"),
    "features with a flipped sign": (Kind.FEATURES, flip_sign, "checksum is missing or wrong"),
    "features of length zero": (
        Kind.FEATURES,
        lambda p: rewrite_features(p, lambda x: x * 0),
        "not of unit length, first",
    ),
    "features that are NaN": (
        Kind.FEATURES,
        lambda p: rewrite_features(p, set_first_nan),
        "1 things are not of unit length",
    ),
    "features of another width": (
        Kind.FEATURES,
        lambda p: rewrite_features(p, lambda x: np.tile(np.eye(5, dtype=np.float32)[0], (*x.shape[:2], 1))),
        "features of width 5 among others",
    ),
    "edited inputs": (Kind.INPUTS, lambda p: edit_json(p, source={}, diffuser={}), "keys? of its inputs"),
    "HTML for inputs": (Kind.INPUTS, write_html, "not JSON"),
    "towers without a figure": (Kind.TOWERS, lambda p: p.write_text("{}"), "does not tell"),
    "a damaged ledger": (Kind.COST_LOG, lambda p: p.write_text("{}\n"), "line 1 of it is damaged"),
}
