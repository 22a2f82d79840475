"""What can happen to a file of a store, and what is then said of it."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lgclip.inventory import Kind


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def html(path: Path) -> None:
    path.write_text("<!doctype html><title>404</title>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 3)])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"and more")


def swap(path: Path) -> None:
    folder = path.parent if path.suffix == ".json" else path.parent.parent
    other = next(other for other in sorted(folder.rglob(f"*{path.suffix}")) if other != path)
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


def repaint(path: Path, mode: str = "RGB", text: str | None = None) -> None:
    with Image.open(path) as image:
        said, painted = image.info["lgclip"], image.convert(mode)
    about = PngInfo()
    if text != "":
        about.add_itxt("lgclip", said if text is None else text)
    painted.save(path, pnginfo=about)


def bomb(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    path.write_bytes(data)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **header: object) -> None:
    with safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["lgclip"])
    save_file({"features": change(load_file(path)["features"])}, path, {"lgclip": json.dumps({**about, **header})})


def first_nan(x: np.ndarray) -> np.ndarray:
    x[0, 0, 0] = np.nan
    return x


DAMAGES: dict[str, tuple[Kind, Callable[[Path], object], str]] = {
    "an empty image": (Kind.IMAGE, empty, "empty"),
    "a cut image": (Kind.IMAGE, cut, "does not decode|is no PNG"),
    "an image with a tail": (Kind.IMAGE, longer, "goes on behind its end"),
    "HTML for an image": (Kind.IMAGE, html, "no PNG"),
    "a JPEG for an image": (Kind.IMAGE, lambda p: Image.new("RGB", (9, 9)).save(p, "JPEG"), "no PNG"),
    "two images swapped": (Kind.IMAGE, swap, "not the key of what it says"),
    "a grey image": (Kind.IMAGE, lambda p: repaint(p, "L"), "mode is L"),
    "an image without its text": (Kind.IMAGE, lambda p: repaint(p, text=""), "does not say what"),
    "an image whose text is no JSON": (Kind.IMAGE, lambda p: repaint(p, text="{"), "does not say what"),
    "an image whose text is a list": (Kind.IMAGE, lambda p: repaint(p, text="[]"), "does not say what"),
    "an image whose text is edited": (
        Kind.IMAGE,
        lambda p: repaint(p, text='{"class_index": 0, "text": "x", "repeat": 0, "seed": 0}'),
        "not the key",
    ),
    "a decompression bomb": (Kind.IMAGE, bomb, "far too large"),
    "empty prompts": (Kind.PROMPTS, empty, "empty"),
    "cut prompts": (Kind.PROMPTS, cut, "not JSON"),
    "two prompts swapped": (Kind.PROMPTS, swap, "not the key of its inputs"),
    "prompts of an edited class": (Kind.PROMPTS, lambda p: edit(p, inputs={"class": "x"}), "not the key"),
    "prompts without inputs": (Kind.PROMPTS, lambda p: edit(p, inputs=None), "does not say what"),
    "prompts that are a word": (Kind.PROMPTS, lambda p: edit(p, prompts="a photo"), "not a list of sentences"),
    "prompts that are numbers": (Kind.PROMPTS, lambda p: edit(p, prompts=[1]), "not a list of sentences"),
    "prompts in a list": (Kind.PROMPTS, lambda p: p.write_text("[]"), "no JSON object"),
    "deep prompts": (Kind.PROMPTS, lambda p: p.write_text("[" * 99_999), "not JSON"),
    "empty features": (Kind.FEATURES, empty, "empty"),
    "cut features": (Kind.FEATURES, cut, "header cannot be read, or it is cut"),
    "features with a tail": (Kind.FEATURES, longer, "header cannot be read"),
    "HTML for features": (Kind.FEATURES, html, "header cannot be read"),
    "features under a wrong name": (Kind.FEATURES, lambda p: p.replace(p.with_stem("0" * 32)), "not the key of its"),
    "features of an older schema": (Kind.FEATURES, lambda p: rewrite(p, lambda x: x, schema=0), "schema 0, this"),
    "features with other ids": (Kind.FEATURES, lambda p: rewrite(p, lambda x: x, ids=["a"]), "not F32 of 1 ids"),
    "features in half precision": (Kind.FEATURES, lambda p: rewrite(p, lambda x: x.astype(np.float16)), "F16"),
    "features of length zero": (Kind.FEATURES, lambda p: rewrite(p, lambda x: x * 0), "not of unit length, first"),
    "features that are NaN": (Kind.FEATURES, lambda p: rewrite(p, first_nan), "1 things are not of unit length"),
    "features of another width": (
        Kind.FEATURES,
        lambda p: rewrite(p, lambda x: np.tile(np.eye(5, dtype=np.float32)[0], (*x.shape[:2], 1))),
        "features of width 5 among others",
    ),
    "edited inputs": (Kind.INPUTS, lambda p: edit(p, source={}, diffuser={}), "keys? of its inputs"),
    "HTML for inputs": (Kind.INPUTS, html, "not JSON"),
    "towers without a figure": (Kind.TOWERS, lambda p: p.write_text("{}"), "does not tell"),
    "a damaged ledger": (Kind.LEDGER, lambda p: p.write_text("{}\n"), "line 1 of it is damaged"),
}  # fmt: skip
