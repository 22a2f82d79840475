"""Prints an entry script's `--help` from its config files, without Hydra, which composes all of them and is slower."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lgclip.runtime.config_aliases import SECOND_ENCODER

HELP = {"--help", "-h"}
"""Options for help when used alone; with further arguments Hydra prints the composed config."""

_WIDTH = 118
_APART = ("defaults:", "hydra:")

_MORE = """\
Any value inside a group's YAML can be set too, such as encoder.batch_size=64.
  --cfg job       the config that a command line makes
  -m              a sweep, over key=a,b,c or the grid of the config: docs/guides/sweeps.md
  --hydra-help    Hydra's own options"""


def usage(script: Path, purpose: str) -> str:
    """Returns the help text: a script's purpose, the choices of each config group, and its values with their comments.

    Args:
        script: The script, next to `conf/` with a config of its name.
        purpose: Its purpose, in a line.
    """
    conf = script.parent / "conf"
    chosen, values = _root(conf, script.stem)
    groups: dict[str, list[str]] = {}
    for path in sorted(conf.glob("*/**/*.yaml")):
        group, *inside = path.relative_to(conf).with_suffix("").parts
        choice = "/".join(inside)
        # Groups of Hydra are one level deeper: hydra/launcher=slurm.
        if group == "hydra":
            group = f"hydra/{inside[0]}"
            choice = inside[1]
        elif group not in chosen:
            continue  # of another script, such as `rejection` of lgclip build
        if choice == chosen.get(group):
            choice = f"*{choice}"
        groups.setdefault(group, []).append(choice)
    if SECOND_ENCODER in groups:
        groups[SECOND_ENCODER] += [choice.removeprefix("*") for choice in groups["encoder"]]
    width = max(map(len, groups)) + 2
    lines = []
    for group, choices in groups.items():
        head_of_line = f"  {group:{width}}"
        text = ", ".join(choices)
        lines.append(textwrap.fill(text, _WIDTH, initial_indent=head_of_line, subsequent_indent=" " * (2 + width)))
    head = [f"{script.name}: {purpose}", "", "Groups, as in dataset=digits; * is the default"]
    return "\n".join([*head, *lines, "", "Values, as in prompts_per_class=5", *values, "", _MORE])


def _root(conf: Path, name: str) -> tuple[dict[str, str], list[str]]:
    """Returns the choices of a root config, and the lines of its values; those of an included root come first."""
    path = conf / f"{name}.yaml"
    chosen: dict[str, str] = {}
    values: list[str] = []
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    # Read as plain YAML: only the list of the choices is needed, and to have Hydra compose the config takes longer.
    for entry in config.defaults:
        if isinstance(entry, DictConfig):
            chosen |= {str(group).removeprefix("override "): str(choice) for group, choice in entry.items()}
        elif entry != "_self_":
            chosen, values = _root(conf, str(entry))
    return chosen, [*values, *_values(path)]


def _values(path: Path) -> Iterator[str]:
    """Returns the lines of a config without its header, its defaults and its Hydra settings."""
    # As text, because a YAML parser drops the comments, and they are what explains the values. A line that is not
    # indented begins a new part, which is shown or not as a whole.
    started = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line[0].isspace() and not (line.startswith("#") and not started):
            started = not line.startswith(_APART)
        if started and line:
            yield f"  {line}"
