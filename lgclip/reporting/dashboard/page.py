"""Builds one HTML file from the page's parts and its data: it makes no request, and no name in it is markup."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lgclip.reporting.dashboard.collect import collect
from lgclip.reporting.dashboard.schema import Page, PromptImages, RunData
from lgclip.store.atomic import atomic_write

SCRIPTS = (
    "data.js", "dom.js", "link.js", "figures.js", "exports.js", "table.js", "charts.js", "sets.js", "summary.js",
    "filters.js", "runs.js", "compare.js", "grid.js", "seeds.js", "lines.js", "learning.js", "classes.js",
    "diagnostics.js", "confidence.js", "matrix.js", "pictures.js", "featuremap.js", "costs.js", "page.js",
)  # fmt: skip
"""The page's own scripts, in the order in which they are joined."""

LIBRARY = "echarts.min.js"
"""Library that draws its charts."""

IMAGES = 10
"""Maximum number of images of a class in a gallery."""

_PLACES = ("csp", "title", "style", "library", "script", "data")
# `<`, `>` and `&` could end the script element or start a comment in it. U+2028 and U+2029 are line ends to older
# versions of JavaScript, though JSON allows them in strings.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_page(
    places: Sequence[Path], out: Path, *, title: str = "", reference: Path | None = None, images: int = IMAGES
) -> str:
    """Writes the page that compares runs atomically.

    Args:
        places: Folders of runs and of sweeps.
        out: The HTML file to write.
        title: The page's title; empty for one that names the evaluated data.
        reference: The run that the others are compared with; None for the first.
        images: Maximum number of images of a class in a run's gallery; 0 for a page without images.

    Returns:
        One line on what was written, and a line for each thing that could not be shown.

    Raises:
        ValueError: If a folder holds no run, no run has finished, or `out` is a folder.
    """
    if images < 0:
        raise ValueError(f"images={images}: it must be at least 0, which shows none")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the file to write, such as {out / 'report.html'}")
    # Both are refused before the runs are read, which takes minutes for a large sweep.
    page = collect(places, title=title, reference=reference, images=images)
    text = render(page).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_bytes(text)
    summary = f"{out}: {len(page['runs'])} runs, {len(page['thumbs'])} pictures, {len(text) / 1e6:.1f} MB"
    return "\n".join((summary, *page["notes"]))


def render(page: Page) -> str:
    """Renders the page as HTML.

    The policy allows the inline styles and scripts by their hashes, images as data URIs, and nothing else, so that text
    from a run could not run even if it were markup, and nothing can be fetched (CSP level 3, W3C).

    Args:
        page: The content.
    """
    # The library is a separate script element with its own hash: it is one minified file and stays byte for byte
    # as it was released.
    style = _part("page.css")
    library = _part(LIBRARY)
    script = "\n".join(_part(name) for name in SCRIPTS)
    policy = "; ".join((
        "default-src 'none'",
        "img-src data:",
        f"style-src {csp_hash(style)}",
        f"script-src {csp_hash(library)} {csp_hash(script)}",
        "base-uri 'none'",
        "form-action 'none'",
    ))  # fmt: skip
    # A path may hold half a surrogate pair (a byte of a file name that is no UTF-8), which no file can be written with.
    title = escape(page["title"]).encode("utf-8", "replace").decode()
    values = (policy, title, style, library, script, as_json(packed(page)))
    return _fill(_part("page.html"), dict(zip(_PLACES, values, strict=True)))


def packed(page: Page) -> dict[str, Any]:
    """Returns the page in its compact form: classes in columns and each prompt once; data.js unpacks it.

    Sixty runs of a thousand classes would take 3 MB otherwise.
    """
    prompts: dict[str, int] = {}
    return {"page": {**page, "runs": [_packed(run, prompts) for run in page["runs"]]}, "prompts": list(prompts)}


def _packed(run: RunData, prompts: dict[str, int]) -> dict[str, Any]:
    # Columns, so that the four keys stand once in the file and not once per class.
    columns: dict[str, list[Any]] = {}
    for key in ("n", "right", "taken_for", "times"):
        columns[key] = [row[key] for row in run["classes"]]
    gallery = [_packed_album(album, prompts) for album in run["gallery"]]
    return {**run, "classes": columns, "gallery": gallery}


def _packed_album(album: Sequence[PromptImages], prompts: dict[str, int]) -> list[list[Any]]:
    """Returns the number of each prompt, which all runs of the page share, and the images generated from it."""
    return [
        [prompts.setdefault(prompt_images["prompt"], len(prompts)), prompt_images["images"]] for prompt_images in album
    ]


def csp_hash(text: str) -> str:
    """Returns the hash that a Content-Security-Policy uses for an inline script or style: that of its content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def as_json(value: Any) -> str:
    """Returns JSON that is safe inside a `<script>`: nothing in it ends the element, and all numbers are finite."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair is no UTF-8. Its escape, such as \udc80, is the same character to JSON.
    return text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    """Returns the same with null for numbers that are not finite, which JSON cannot represent."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):  # a string is a sequence of itself
        return [_finite(item) for item in value]
    return value


def _part(name: str) -> str:
    """Reads a file next to this module, with line feeds as line endings, as browsers read them."""
    # Reading as text turns every line end into a line feed. The hash of the policy is taken of what the browser sees,
    # so a checkout with Windows' line ends would otherwise block its own scripts.
    return (files("lgclip.reporting.dashboard") / name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replaces each `{{name}}` of the template in one pass, so that braces inside a value stay unchanged."""
    names = re.findall(r"\{\{(\w+)\}\}", template)
    assert sorted(names) == sorted(values), f"page.html names {names}, not each of {list(values)} once"
    # By a function: as a string, a value would have its backslashes read as escapes.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
