"""Tests that `--help` lists all choices and the defaults."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from lgclip.cli.help import usage

ROOT = Path(__file__).parents[2]


def groups_of(text: str) -> dict[str, list[str]]:
    """Returns the choices of each group that a help text lists."""
    listed = text.split("the default\n")[1].split("\n\n", maxsplit=1)[0]
    lines = listed.replace("\n                  ", " ").splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]).split(", ") for line in lines}


@pytest.mark.parametrize("name", ["evaluate", "generate", "train"])
def test_help_lists_every_choice(name: str) -> None:
    groups = groups_of(usage(ROOT / f"{name}.py", "says"))
    for group, choices in groups.items():
        folder = ROOT / "conf" / group
        expected = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
        if group == "encoder2":  # takes the choices of the first
            expected += [path.stem for path in (ROOT / "conf" / "encoder").glob("*.yaml")]
        assert sorted(choice.removeprefix("*") for choice in choices) == sorted(expected)
    folders = {path.parts[len(ROOT.parts) + 1] for path in (ROOT / "conf").glob("*/**/*.yaml")}
    # `rejection` is of lgclip build alone.
    assert folders - {group.partition("/")[0] for group in groups} == {"rejection"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose(name, return_hydra_config=True)
        HydraConfig.instance().set_config(composed)
        chosen = composed.hydra.runtime.choices
    stars = {group: choice[1:] for group, choices in groups.items() for choice in choices if choice[0] == "*"}
    assert stars == {group: chosen[group] for group in groups if chosen[group] and group.partition("/")[0] != "hydra"}


def test_help_shows_config_values() -> None:
    lines = usage(ROOT / "evaluate.py", "says").split("prompts_per_class=5\n")[1].split("\n\n")[0].splitlines()
    config = (ROOT / "conf" / "evaluate.yaml").read_text(encoding="utf-8").splitlines()
    start = config.index("  - experiment: null") + 1
    end = config.index("hydra:")
    assert [line[2:] for line in lines] == [line for line in config[start:end] if line]


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_flags_are_equivalent(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", word])
    runpy.run_path(str(ROOT / "generate.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("generate.py: Generates prompts and images: `python generate.py")


def test_module_runs_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lgclip", "audit", "no_such_run"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("lgclip", run_name="__main__")
    assert exit_info.value.code == 1
    assert "no_such_run" in capsys.readouterr().err
