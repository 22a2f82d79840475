"""Tests the documentation: its size, words, navigation, links and commands."""

import ast
import inspect
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgclip.evaluation.diagnostics import COLUMNS
from lgclip.reporting import result
from lgclip.reporting.run_folder import PREDICTION_COLUMNS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

# Words that the field does not use, or not in this sense, and British spellings; the glossary has the field's. They are
# written in pieces, so that a replacement of such a word in the whole project leaves this list alone.
FOREIGN = re.compile(
    r"\b("
    r"an""ew|bes""ide|br""ush|fore""tells?|gu""ess(es|ed|ing)?|ju""dg(e|es|ed|ing|ement|ements)|k""in|"
    r"lear""ners?|lear""nt|led""gers?|like""ness(es)?|pict""ures?|re""open(s|ed)?|so""ft prompts? learning|"
    r"tau""ght|to""ld|vict""ims?|what is no""t a run|colo""urs?|cent""res?|optimi""sers?|normali""sed?|licen""ces?"
    r")\b",
    re.IGNORECASE,
)  # fmt: skip


# Names that say nothing about the value.
UNINFORMATIVE = re.compile(
    r"(to""ld|sa""id|sa""ys|ow""n|fo""und|gi""ven|as""ked|who""le|bes""ide|ke""pt|wan""ted|their""s|our""s|mi""ne|at)"
)  # fmt: skip


def prose(text: str) -> str:
    """Returns a page without code, addresses and images, where such a word may be part of a name."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(BENCHMARKS.glob("*.md"))], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_pages_use_the_words_of_the_field(page: Path) -> None:
    violations = [
        f"{number}: {match.group(0)}"
        for number, line in enumerate(prose(page.read_text(encoding="utf-8")).splitlines(), 1)
        for match in FOREIGN.finditer(line)
    ]
    assert not violations


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda script: script.stem)
def test_benchmarks_use_the_words_of_the_field(script: Path) -> None:
    with script.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    texts = [token.string for token in tokens if token.type in {tokenize.COMMENT, tokenize.STRING}]
    assert not [match.group(0) for text in texts for match in FOREIGN.finditer(text)]
    names = set(defined_names(ast.parse(script.read_text(encoding="utf-8"))))
    assert not [name for name in names if FOREIGN.search(name.replace("_", " "))]
    assert not [name for name in names if UNINFORMATIVE.fullmatch(name.strip("_"))]


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Yields the names of functions, classes, parameters, variables and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_help_texts_use_the_words_of_the_field() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        from generate_reference import cli_reference  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(DOCS))
    text = "\n".join(cli_reference())
    assert "## lgclip compare" in text
    assert "## lgclip store verify" in text
    assert not [match.group(0) for match in FOREIGN.finditer(text)]


def test_the_readme_is_one_page() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert "make demo" in "\n".join(lines[:40])
    for paper in ("2512.17160", "2307.08526", "2504.11930"):
        assert f"https://arxiv.org/abs/{paper}" in "\n".join(lines)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_pages_at_the_root_resolve(name: str) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")) or not path:
            continue
        if not (ROOT / path).exists():
            missing.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            if anchor not in anchors:
                missing.append(target)
    assert not missing


def test_every_page_is_in_the_navigation_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = re.findall(r"([\w/]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"\b((?:benchmarks|conf|examples|lgclip|tests)/[\w/.-]*\w)\b", page.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "conf" / "experiment")
    # Names in capitals stand for the reader's own.
    named = [name for name in named if not re.search(r"[A-Z]{3}", name)]
    missing = {name for name in named if not any((place / name).exists() for place in places)}
    missing -= {name for name in missing if (places[1] / f"{name}.yaml").exists()}
    assert not missing


def columns(page: str, heading: str) -> list[str]:
    """Returns the names in the first column of the table below a heading."""
    section = (DOCS / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_the_columns_of_the_files_are_those_that_a_run_writes() -> None:
    assert columns("reference/run_folder.md", "predictions.csv") == list(PREDICTION_COLUMNS)
    assert ["class", "name", *columns("concepts/diagnostics.md", "Columns")] == list(COLUMNS)
    source = inspect.getsource(result).replace("\n", " ")
    header = ", ".join(f'"{name}"' for name in columns("reference/run_folder.md", "per_class.csv"))
    assert f"({header})" in source


def test_every_skipped_command_says_why() -> None:
    for page in PAGES:
        for reason in re.findall(r"<!-- not run(.*?)-->", page.read_text(encoding="utf-8"), re.DOTALL):
            assert re.fullmatch(r": \S.{3,}\S ", reason), f"{page}: {reason}"


def test_every_command_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    from check_commands import commands, pages, split  # pyright: ignore[reportMissingImports]

    assert set(pages()) == {ROOT / "README.md", *DOCS.rglob("*.md")}
    all_commands = [command for page in pages() for command in commands(page)]
    blocks = sum(page.read_text(encoding="utf-8").count("\n```bash\n") for page in pages())
    assert len({(command.page, command.text) for command in all_commands}) >= blocks
    assert sum(not command.reason for command in all_commands) > 50
    assert list(split("# no command\na \\\n  b\nc - <<'X'\nd\nX\ne")) == ["a \\\n  b", "c - <<'X'\nd\nX", "e"]


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|"""
        r"""<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//"""
    )
    for page in pages:
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    reference = (tmp_path / "site" / "reference" / "config.html").read_text(encoding="utf-8")
    assert "prompts_per_class" in reference
    assert "generated:" not in reference
