"""The page is one file in which text is never markup and from which nothing is fetched."""

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
from hypothesis import given
from hypothesis import strategies as st
from worlds import tree
from written_runs import write_failed, write_run

from lgclip.dashboard.collect import collect
from lgclip.dashboard.page import as_json, render, write_page
from lgclip.dashboard.shape import Page
from lgclip.runs import RunError

HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--<script>", "a\u2028b\u2029c",
    "\"quo'ted\\", "{{data}} {{csp}}", "x" * 5000, "", "\u202eright to left", "🦊 & fox", "nul \x00 del \x7f", "]]>",
    "\ud800 half",
)  # fmt: skip


class Parts(HTMLParser):
    """What a browser sees: the text of each script and style element, and every tag."""

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
    """What data.js makes of the data."""
    read = json.loads(text)
    for run in read["page"]["runs"]:
        columns = run["classes"]
        run["classes"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        run["gallery"] = [
            [{"prompt": read["prompts"][at], "images": images} for at, images in drawn] for drawn in run["gallery"]
        ]
    return read["page"]


def plain(page: Page) -> Any:
    """As JSON has it: no tuples."""
    return json.loads(json.dumps(page))


def test_names_prompts_and_settings_come_back_as_they_were_and_are_never_markup(tmp_path: Path) -> None:
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
def test_any_value_becomes_json_that_may_stand_in_a_script(value: Any) -> None:
    text = as_json(value)
    assert not set(text) & set("<>&\u2028\u2029\r\n")
    text.encode()

    def finite(one: Any) -> Any:
        if isinstance(one, float):
            return one if np.isfinite(one) else None
        if isinstance(one, list):
            return [finite(inner) for inner in one]
        return {key: finite(inner) for key, inner in one.items()} if isinstance(one, dict) else one

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refused) == finite(value)


def test_the_policy_names_exactly_the_scripts_and_styles_that_are_there(tmp_path: Path) -> None:
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


def test_nothing_on_the_page_points_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    seen = Parts(render(collect([tmp_path], title="", reference=None, images=0)))
    assert not [attrs for _, attrs in seen.tags if "src" in attrs or "srcset" in attrs or "action" in attrs]
    links = [attrs["href"] or "" for _, attrs in seen.tags if "href" in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_a_page_is_written_whole_and_says_what_it_holds(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    out = tmp_path / "new" / "report.html"
    told = write_page([tmp_path / "run"], out, title="A & B", images=0)
    assert re.fullmatch(rf"{re.escape(str(out))}: 1 runs?, 0 pictures, \d+\.\d MB", told)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    seen = Parts(out.read_text(encoding="utf-8"))
    assert seen.scripts["title"] == ["A & B"]
    assert unpacked(seen.scripts["json"][0])["title"] == "A & B"


def test_what_cannot_be_shown_leaves_an_older_page_as_it_was(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    out = tmp_path / "report.html"
    out.write_text("older")
    (tmp_path / "run" / "predictions.csv").unlink()
    before = tree(tmp_path)
    with pytest.raises(RunError, match=r"predictions\.csv is not there"):
        write_page([tmp_path / "run"], out, images=0)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "out", "images", "message"),
    [
        ("nowhere", "report.html", 0, "nowhere holds no finished run"),
        ("run", ".", 0, r"is a folder: name the file to write, such as .*report\.html"),
        ("run", "report.html", -1, "images=-1: it must be at least 0"),
    ],
)
def test_a_bad_call_is_one_clear_error(tmp_path: Path, place: str, out: str, images: int, message: str) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        write_page([tmp_path / place], tmp_path / out, images=images)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_sixty_runs_of_a_thousand_classes_are_less_than_five_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"kind of thing number {c}" for c in range(1000)]
    label = np.arange(1000).repeat(5)
    prediction = np.where(rng.random(5000) < 0.7, label, rng.integers(0, 1000, 5000))
    result = write_run(tmp_path / "0", names=names, label=label.tolist(), prediction=prediction.tolist())
    for at in range(1, 60):
        shutil.copytree(tmp_path / "0", tmp_path / str(at))
        config = {**result["config"], "seed": at % 5, "prompts_per_class": at // 5}
        (tmp_path / str(at) / "result.json").write_text(json.dumps({**result, "config": config}))
    page = collect([tmp_path], title="", reference=None, images=0)
    page["runs"][0]["gallery"] = [
        [{"prompt": f"a photo of {name}, {i} of 10, in front of something else", "images": [str(i)]} for i in range(10)]
        for name in names
    ]
    text = render(page)
    assert len(text.encode()) < 5_000_000
    assert all(len(run["classes"]) == 1000 for run in page["runs"])
    assert unpacked(Parts(text).scripts["json"][0]) == plain(page)
