"""What `--help` says of an entry script, read off its configs: Hydra composes all of them first, which takes longer."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

HELP = {"--help", "-h"}
"""What asks for it, alone; beside other words Hydra shows the config that they make."""

_WIDTH = 118
_APART = ("defaults:", "hydra:")

_MORE = """\
Any value inside a group's YAML can be set too, such as encoder.batch_size=64.
  --cfg job       the config that a command line makes
  -m              a sweep, over key=a,b,c or the grid of the config: docs/sweeps.md
  --hydra-help    Hydra's own options"""


def usage(script: Path, said: str) -> str:
    """What a script does, what each group of its config may be, and its values with their comments.

    Args:
        script: The script, beside `conf/` with a config of its name.
        said: What it does, in a line.
    """
    conf = script.parent / "conf"
    chosen, values = _root(conf, script.stem)
    groups: dict[str, list[str]] = {}
    for path in sorted(conf.glob("*/**/*.yaml")):
        group, *inside = path.relative_to(conf).with_suffix("").parts
        launcher = group == "hydra"
        group, choice = (f"hydra/{inside[0]}", inside[1]) if launcher else (group, "/".join(inside))
        groups.setdefault(group, []).append(f"*{choice}" if choice == chosen.get(group) else choice)
    width = max(map(len, groups)) + 2
    lines = [
        textwrap.fill(
            ", ".join(choices), _WIDTH, initial_indent=f"  {group:{width}}", subsequent_indent=" " * (2 + width)
        )
        for group, choices in groups.items()
    ]
    head = [f"{script.name}: {said}", "", "Groups, as in dataset=digits; * is the default"]
    return "\n".join([*head, *lines, "", "Values, as in prompts_per_class=5", *values, "", _MORE])


def _root(conf: Path, name: str) -> tuple[dict[str, str], list[str]]:
    """The choices of a root config, and the lines of its values; another root's that it takes over come first."""
    path = conf / f"{name}.yaml"
    chosen: dict[str, str] = {}
    values: list[str] = []
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    for entry in config.defaults:
        if isinstance(entry, DictConfig):
            chosen |= {str(group).removeprefix("override "): str(choice) for group, choice in entry.items()}
        elif entry != "_self_":
            chosen, values = _root(conf, str(entry))
    return chosen, [*values, *_values(path)]


def _values(path: Path) -> Iterator[str]:
    """The lines of a config without its head, its defaults and what it sets of Hydra."""
    shown = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line[0].isspace() and not (line.startswith("#") and not shown):
            shown = not line.startswith(_APART)
        if shown and line:
            yield f"  {line}"
