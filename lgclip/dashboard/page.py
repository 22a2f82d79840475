"""One HTML file out of the page's parts and its data: no request leaves it, and no name in it is markup."""

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

from lgclip.dashboard.collect import collect
from lgclip.dashboard.shape import Page, RunData
from lgclip.whole import write_whole

SCRIPTS = (
    "data.js", "dom.js", "figures.js", "table.js", "charts.js", "summary.js", "runs.js", "compare.js", "grid.js",
    "lines.js", "learning.js", "classes.js", "confidence.js", "pictures.js", "costs.js", "page.js",
)  # fmt: skip
"""The page's own scripts, in the order in which they are joined."""

LIBRARY = "echarts.min.js"
"""What draws its charts."""

IMAGES = 10
"""Pictures of a class in a gallery at most."""

_PLACES = ("csp", "title", "style", "library", "script", "data")
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_page(
    places: Sequence[Path], out: Path, *, title: str = "", reference: Path | None = None, images: int = IMAGES
) -> str:
    """Writes the page that compares runs, whole or not at all.

    Args:
        places: Folders of runs and of sweeps.
        out: The HTML file to write.
        title: The page's title; empty for one that says what was judged.
        reference: The run that the others are compared with; None for the first.
        images: Pictures of a class in a run's gallery at most; 0 for a page without pictures.

    Returns:
        One line on what was written, and a line for each thing that could not be shown.

    Raises:
        ValueError: If a folder holds no run, not a single run has finished, or `out` is a folder.
    """
    if images < 0:
        raise ValueError(f"images={images}: it must be at least 0, which shows none")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the file to write, such as {out / 'report.html'}")
    page = collect(places, title=title, reference=reference, images=images)
    text = render(page).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(out) as temporary:
        temporary.write_bytes(text)
    told = f"{out}: {len(page['runs'])} runs, {len(page['thumbs'])} pictures, {len(text) / 1e6:.1f} MB"
    return "\n".join((told, *page["notes"]))


def render(page: Page) -> str:
    """The page as HTML.

    The policy allows the inline styles and scripts by their hashes, pictures as data, and nothing else, so text that
    came from a run could not run even if it were markup, and nothing can be fetched (CSP level 3, W3C).

    Args:
        page: What is to be shown.
    """
    style = _part("page.css")
    library, script = _part(LIBRARY), "\n".join(_part(name) for name in SCRIPTS)
    policy = "; ".join((
        "default-src 'none'",
        "img-src data:",
        f"style-src {csp_hash(style)}",
        f"script-src {csp_hash(library)} {csp_hash(script)}",
        "base-uri 'none'",
        "form-action 'none'",
    ))  # fmt: skip
    title = escape(page["title"]).encode("utf-8", "replace").decode()
    values = (policy, title, style, library, script, as_json(packed(page)))
    return _fill(_part("page.html"), dict(zip(_PLACES, values, strict=True)))


def packed(page: Page) -> dict[str, Any]:
    """The page as it stands in the file: classes in columns and each prompt once; data.js unpacks it.

    Sixty runs of a thousand classes would take 3 MB otherwise.
    """
    prompts: dict[str, int] = {}
    return {"page": {**page, "runs": [_packed(run, prompts) for run in page["runs"]]}, "prompts": list(prompts)}


def _packed(run: RunData, prompts: dict[str, int]) -> dict[str, Any]:
    columns = {key: [row[key] for row in run["classes"]] for key in ("n", "right", "taken_for", "times")}
    gallery = [
        [[prompts.setdefault(one["prompt"], len(prompts)), one["images"]] for one in drawn] for drawn in run["gallery"]
    ]
    return {**run, "classes": columns, "gallery": gallery}


def csp_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style: the hash of what stands between its tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def as_json(value: Any) -> str:
    """JSON that may stand inside a `<script>`: nothing in it ends the element, and no number is not finite."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES).encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no UTF-8


def _finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(one) for one in value]
    return value


def _part(name: str) -> str:
    """A file beside this one, its lines ending as a browser reads them: in a line feed."""
    return (files("lgclip.dashboard") / name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each `{{name}}` replaced in one pass, so that a value's own braces are left alone."""
    found = re.findall(r"\{\{(\w+)\}\}", template)
    assert sorted(found) == sorted(values), f"page.html names {found}, not each of {list(values)} once"
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
