"""Tests YAML of others: aliases, interpolations, sizes and depths that would take gigabytes are one error."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from factories import run_command
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from yaml import YAMLError

from lgclip.datasets.parquet_shards import Card
from lgclip.runtime.secrets import refuse_secrets
from lgclip.runtime.yaml_checks import MAX_CONFIG_BYTES, UnsafeYamlError, check_expansion, read_card, scan


def laughs(levels: int = 9) -> str:
    """Returns a text whose value has 10 to the power of `levels` strings."""
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


def card(folder: Path, header: str) -> Path:
    path = folder / "README.md"
    path.write_text(f"---\n{header}\n---\n# A set\n", encoding="utf-8")
    return path


BOMBS = {
    "billion laughs": laughs(),
    "one long string": "a: &a " + "x" * 10_000 + "\n" + "\n".join(f"b{i}: *a" for i in range(3000)),
    "itself": "a: &a [*a]",
    "merged": "a: &a {x: 1}\nb:\n  <<: *a",
    "deep": "[" * 100_000,
    "deep blocks": "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 300)),
    "many values": "a: [" + "1," * 300_000 + "]",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BOMBS)
def test_card_is_read_within_limits(case: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"README\.md"):
        Card.read(card(tmp_path, BOMBS[case]), None)
    assert tracemalloc.get_traced_memory()[1] < 5e7
    tracemalloc.stop()


def test_card_without_an_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\n" + "a: 1\n" * 1_000_000)
    with pytest.raises(UnsafeYamlError, match="header is larger than 4 MB"):
        Card.read(path, None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", {}), ("# no header", {}), ("---\n---\n", {}), ("---\na: 1\n---", {"a": 1}),
        ("\ufeff---\r\na: b\r\n---\r\n", {"a": "b"}),
        ("---\na: [1, no, 1.5, 2020-01-01, ~, '2']\n---\n", {"a": [1, "no", "1.5", "2020-01-01", None, "2"]}),
        ("---\n0: true\n---\n", {"0": "true"}),
        ("---\na: 99999999999999999999999999\n---\n", {"a": "99999999999999999999999999"}),
    ],
)  # fmt: skip
def test_card_has_texts_and_numbers(content: str, expected: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(content, encoding="utf-8", newline="")
    assert read_card(path) == expected


@pytest.mark.parametrize(
    "header", ["- a", "a: !!python/object:os.system x", "a: !!binary x", "a: [", "a: b: c", "? [1]\n: 2"]
)
def test_damaged_card_is_one_error(header: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"README\.md"):
        Card.read(card(tmp_path, header), None)


NAMES = "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names: "


@pytest.mark.parametrize("names", ["[[a]]", "[{a: b}]", "{x: a}", "text", "[" + "a" * 2000 + "]", "[~]"])
def test_card_with_other_names_is_one_error(names: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.label_column=label: "):
        Card.read(card(tmp_path, NAMES + names), None).class_names("label")


def test_card_names_classes(tmp_path: Path) -> None:
    assert Card.read(card(tmp_path, NAMES + "{'1': no, '0': 7, '10': x}"), None).class_names("label") == [
        "7",
        "no",
        "x",
    ]


@given(st.text(max_size=200))
def test_any_text_is_scanned_or_refused(text: str) -> None:
    try:
        scan(text, "x", allows_aliases=True)
    except (UnsafeYamlError, YAMLError):
        return


CONFIGS = {
    "billion laughs": laughs(), "itself": "a: &a\n  b: *a", "large": "a: " + "x" * MAX_CONFIG_BYTES,
    "deep": "a: " + "[" * 500 + "]" * 500, "not UTF-8": "a: \udcff",
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("option", ["--config-dir={}", "-cd={}", "--config-path={}", "hydra.searchpath=[file://{}]"])
def test_foreign_config_is_checked_before_hydra(
    case: str, option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foreign" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(f"# @package _global_\n{CONFIGS[case]}\n".encode(errors="surrogateescape"))
    argument = option.format(path.parent.parent)
    arguments = argument.split("=", 1) if argument.startswith("-cd") else [argument]
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        run_command("evaluate", *arguments, "experiment=mine")
    assert "mine.yaml" in f"{ended.value.code}"
    assert "\n" not in f"{ended.value.code}{capfd.readouterr().err}".strip()
    assert time.monotonic() - start < 5


def test_ordinary_aliases_of_a_config_are_allowed() -> None:
    scan("a: &a {x: 1, y: [1, 2]}\nb: *a\nc: [*a, *a]\nd:\n  <<: *a", "x", allows_aliases=True)


INTERPOLATIONS = {
    "strings": {"a0": "x" * 10, **{f"a{i}": f"${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, 40)}},
    "sections": {"a0": {"x": 1}, **{f"a{i}": {"x": f"${{a{i - 1}}}", "y": f"${{a{i - 1}}}"} for i in range(1, 40)}},
    "relative": {"n": {"a0": "x" * 10, **{f"a{i}": f"${{.a{i - 1}}}${{.a{i - 1}}}" for i in range(1, 40)}}},
    "by way of another": {
        "s": {"x": "y" * 1000}, "r": "${s}", "a0": "${r.x}", **{f"a{i}": f"${{a{i - 1}}}" * 10 for i in range(1, 9)},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", INTERPOLATIONS)
def test_interpolations_are_counted_not_expanded(case: str) -> None:
    config: Any = OmegaConf.create(INTERPOLATIONS[case])
    start = time.monotonic()
    with pytest.raises(UnsafeYamlError, match="its interpolations expand to more than 20 MB"):
        refuse_secrets(config)
    assert time.monotonic() - start < 2


def test_ordinary_interpolations_are_allowed() -> None:
    check_expansion(
        OmegaConf.create({"a": "${b}", "b": "${a}", "c": "${nowhere.x}", "d": "${..e}", "f": ["${.0}", 1, None]})
    )
