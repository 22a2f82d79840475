"""What `--help` says: all that can be chosen, and what is chosen without a word."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from lgclip.usage import usage

ROOT = Path(__file__).parents[1]


def groups_of(text: str) -> dict[str, list[str]]:
    """The choices of each group that a help text lists."""
    listed = text.split("the default\n")[1].split("\n\n", maxsplit=1)[0]
    lines = listed.replace("\n                  ", " ").splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]).split(", ") for line in lines}


@pytest.mark.parametrize("name", ["evaluate", "generate", "train"])
def test_each_choice_there_is_stands_in_the_help_and_a_star_before_hydra_s_own(name: str) -> None:
    groups = groups_of(usage(ROOT / f"{name}.py", "says"))
    for group, choices in groups.items():
        folder = ROOT / "conf" / group
        there = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        assert sorted(choice.removeprefix("*") for choice in choices) == there
    assert {path.parts[len(ROOT.parts) + 1] for path in (ROOT / "conf").glob("*/**/*.yaml")} <= {
        group.partition("/")[0] for group in groups
    }
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose(name, return_hydra_config=True)
        HydraConfig.instance().set_config(composed)
        chosen = composed.hydra.runtime.choices
    stars = {group: choice[1:] for group, choices in groups.items() for choice in choices if choice[0] == "*"}
    assert stars == {group: chosen[group] for group in groups if chosen[group] and group.partition("/")[0] != "hydra"}


def test_the_values_stand_there_as_in_the_config_and_nothing_of_hydra() -> None:
    told = usage(ROOT / "evaluate.py", "says").split("prompts_per_class=5\n")[1].split("\n\n")[0].splitlines()
    config = (ROOT / "conf" / "evaluate.yaml").read_text(encoding="utf-8").splitlines()
    start, end = config.index("  - experiment: null") + 1, config.index("hydra:")
    assert [line[2:] for line in told] == [line for line in config[start:end] if line]


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_a_script_is_asked_for_help_by_either_word(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", word])
    runpy.run_path(str(ROOT / "generate.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("generate.py: Writes prompts and draws images: `python generate.py")
