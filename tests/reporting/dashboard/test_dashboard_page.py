"""Tests that the page is one file in which text is never markup and which fetches nothing."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import read_tree
from hypothesis import given
from hypothesis import strategies as st
from run_factories import write_failed, write_run

from lgclip.reporting.dashboard.collect import collect
from lgclip.reporting.dashboard.page import as_json, render, write_page
from lgclip.reporting.dashboard.schema import Page
from lgclip.reporting.run_folder import RunError

HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--<script>", "a\u2028b\u2029c",
    "\"quo'ted\\", "{{data}} {{csp}}", "x" * 5000, "", "\u202eright to left", "🦊 & fox", "nul \x00 del \x7f", "]]>",
    "\ud800 half",
)  # fmt: skip


class Parts(HTMLParser):
    """Collects what a browser sees: the text of each script and style element, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, list[str]] = {"script": [], "style": [], "title": [], "json": []}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = "json" if ("type", "application/json") in attrs else tag
        if self._in in self.scripts:
            self.scripts[self._in].append("")

    def handle_data(self, data: str) -> None:
        if self._in in self.scripts:
            self.scripts[self._in][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def unpacked(text: str) -> Page:
    """Returns the data as data.js unpacks it."""
    read = json.loads(text)
    for run in read["page"]["runs"]:
        columns = run["classes"]
        run["classes"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        run["gallery"] = [
            [{"prompt": read["prompts"][index], "images": images} for index, images in generated]
            for generated in run["gallery"]
        ]
    return read["page"]


def plain(page: Page) -> Any:
    """Returns a value as JSON has it, without tuples."""
    return json.loads(json.dumps(page))


def test_text_is_escaped_and_recovered(tmp_path: Path) -> None:
    settings = {"wild": list(HOSTILE), "seed": HOSTILE[0]}
    n = len(HOSTILE)
    write_run(tmp_path / "0", names=HOSTILE[:-1], label=range(n - 1), prediction=[0] * (n - 1), settings=settings)
    write_run(tmp_path / "1", names=HOSTILE[:-1], label=range(n - 1), prediction=[1] * (n - 1))
    write_failed(tmp_path / "2", [f"seed={HOSTILE[1]}"], HOSTILE[0])
    page = collect([tmp_path], title=HOSTILE[0], reference=None, images=0)
    page["runs"][0]["gallery"] = [[{"prompt": text, "images": ["0"]}] for text in HOSTILE]
    text = render(page)
    seen = Parts(text)
    assert unpacked(seen.scripts["json"][0]) == plain(page)
    assert seen.scripts["title"] == [HOSTILE[0]]
    for raw in (*HOSTILE[:3], "\u2028", "\u2029", "\x00"):
        assert raw not in text.replace(page["version"], "")
    assert not [tag for tag in seen.tags if "onerror" in tag[1] or "src" in tag[1]]
    assert text.encode()  # half a surrogate pair would have no bytes


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_json_is_safe_in_a_script(value: Any) -> None:
    text = as_json(value)
    assert not set(text) & set("<>&\u2028\u2029\r\n")
    text.encode()

    def finite(entry: Any) -> Any:
        if isinstance(entry, float):
            return entry if np.isfinite(entry) else None
        if isinstance(entry, list):
            return [finite(inner) for inner in entry]
        return {key: finite(inner) for key, inner in entry.items()} if isinstance(entry, dict) else entry

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refused) == finite(value)


def test_csp_hashes_match_the_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    seen = Parts(render(collect([tmp_path], title="", reference=None, images=0)))
    (policy,) = [tag[1]["content"] for tag in seen.tags if tag[1].get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}

    def hashes(texts: list[str]) -> list[str]:
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]

    assert rules == {
        "default-src": ["'none'"], "img-src": ["data:"], "base-uri": ["'none'"], "form-action": ["'none'"],
        "script-src": hashes(seen.scripts["script"]), "style-src": hashes(seen.scripts["style"]),
    }  # fmt: skip
    assert len(seen.scripts["script"]) == 2, "the library and the page's own"
    assert all(seen.scripts["script"])
    assert not [attrs for _, attrs in seen.tags if "style" in attrs or any(name.startswith("on") for name in attrs)]
    assert [tag for tag, _ in seen.tags].index("meta") < [tag for tag, _ in seen.tags].index("style")


def test_page_has_no_external_links(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    seen = Parts(render(collect([tmp_path], title="", reference=None, images=0)))
    assert not [attrs for _, attrs in seen.tags if "src" in attrs or "srcset" in attrs or "action" in attrs]
    links = [attrs["href"] or "" for _, attrs in seen.tags if "href" in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_page_is_written_atomically(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    out = tmp_path / "new" / "report.html"
    message = write_page([tmp_path / "run"], out, title="A & B", images=0)
    assert re.fullmatch(rf"{re.escape(str(out))}: 1 runs?, 0 pictures, \d+\.\d MB", message)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    seen = Parts(out.read_text(encoding="utf-8"))
    assert seen.scripts["title"] == ["A & B"]
    assert unpacked(seen.scripts["json"][0])["title"] == "A & B"


def test_failed_page_keeps_the_old_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    out = tmp_path / "report.html"
    out.write_text("older")
    (tmp_path / "run" / "predictions.csv").unlink()
    before = read_tree(tmp_path)
    with pytest.raises(RunError, match=r"predictions\.csv is not there"):
        write_page([tmp_path / "run"], out, images=0)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "out", "images", "message"),
    [
        ("nowhere", "report.html", 0, "nowhere holds no finished run"),
        ("run", ".", 0, r"is a folder: name the file to write, such as .*report\.html"),
        ("run", "report.html", -1, "images=-1: it must be at least 0"),
    ],
)
def test_invalid_call_is_one_error(tmp_path: Path, place: str, out: str, images: int, message: str) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        write_page([tmp_path / place], tmp_path / out, images=images)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_large_page_is_below_five_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"kind of thing number {c}" for c in range(1000)]
    label = np.arange(1000).repeat(5)
    prediction = np.where(rng.random(5000) < 0.7, label, rng.integers(0, 1000, 5000))
    result = write_run(tmp_path / "0", names=names, label=label.tolist(), prediction=prediction.tolist())
    for index in range(1, 60):
        shutil.copytree(tmp_path / "0", tmp_path / str(index))
        config = {**result["config"], "seed": index % 5, "prompts_per_class": index // 5}
        (tmp_path / str(index) / "result.json").write_text(json.dumps({**result, "config": config}))
    page = collect([tmp_path], title="", reference=None, images=0)
    page["runs"][0]["gallery"] = [
        [{"prompt": f"a photo of {name}, {i} of 10, in front of something else", "images": [str(i)]} for i in range(10)]
        for name in names
    ]
    text = render(page)
    assert len(text.encode()) < 5_000_000
    assert all(len(run["classes"]) == 1000 for run in page["runs"])
    assert unpacked(Parts(text).scripts["json"][0]) == plain(page)
