"""Generates the reference pages from their sources, so that they cannot differ from the code.

mkdocs calls `on_page_markdown` for each page (see `hooks` in mkdocs.yml). A line `<!-- generated: NAME -->` is
replaced by the output of one of the functions below:

- `config`: the config groups, from the YAML files in conf/;
- `cli`: the subcommands of `lgclip`, from its argument parser;
- `result`: the fields of result.json, from docs/result.schema.json.

`python docs/generate_reference.py NAME` prints one of them.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"<!-- generated: (\w+) -->")

GROUPS = {
    "dataset": "The images to evaluate. See [Data sets](../guides/datasets.md).",
    "llm": "The prompt generator. See [Prompts](../guides/prompts.md) and [Captions](../guides/captions.md).",
    "diffuser": "The source of synthetic images. See [Image generation](../guides/image_generation.md).",
    "encoder": "The vision encoder. See [Encoders](../guides/encoders.md).",
    "encoder2": "A second vision encoder: `none`, or each choice of `encoder`. "
    "See [Encoders](../guides/encoders.md#two-encoders).",
    "scales": "The crops of each image. See [Encoders](../guides/encoders.md#scales).",
    "text": "Which sentences stand for a class. See [Methods](../guides/methods.md#the-text-side).",
    "prototype": "The scoring rule. See [Methods](../guides/methods.md#scoring-rules).",
    "selection": "The synthetic images that represent a class. See [Methods](../guides/methods.md#selection).",
    "calibration": "How free parameters are chosen. See [Methods](../guides/methods.md#calibration).",
    "align": "How real images are brought nearer to synthetic ones. See [Methods](../guides/methods.md#alignment).",
    "transduction": "How the evaluated images are refined together. See [Methods](../guides/methods.md#transduction).",
    "pools": "In which pools transductive rules are compared. See [Methods](../guides/methods.md#transduction).",
    "rejection": "How `lgclip build` rejects images of none of the classes; the default is `negatives`. "
    "See [Limits](../concepts/limits.md#none-of-these).",
    "method": "What images are compared with, or what is trained. See [Methods](../guides/methods.md#methods).",
    "student": "The recipe of a student. See [Students](../guides/students.md).",
    "prompt_tuning": "The recipe of tuned prompts. See [Prompt tuning](../guides/prompt_tuning.md).",
    "paradigm": "The known labels. See [Paradigms](../concepts/paradigms.md).",
    "ood": "Out-of-distribution sets. See [Students](../guides/students.md#out-of-distribution-sets).",
    "trainer": "Devices and processes. See [Several devices and clusters](../guides/clusters.md).",
    "executor": "What computes the stages. See [Ray](../guides/clusters.md#ray).",
    "logger": "Where metrics are logged. See [Loggers](../guides/loggers.md).",
    "protocol": "Values that are set together. See [Protocols](../reproduce/lgclip.md#protocols).",
    "experiment": "Experiments of the papers. See [Reproduce the papers](../reproduce/index.md).",
    "hydra/launcher": "Where the jobs of a sweep run. See [Launchers](../guides/launchers.md).",
}
"""What each config group is for, in the order of the page."""

FIELDS = {
    "schema": "version of this format",
    "run_key": "hash of the config and of the code version",
    "sweep": "the job of the sweep; null outside of sweeps",
    "choices": "the choice in each config group",
    "method": "name of the evaluated method",
    "dataset": "the data set",
    "n": "number of evaluated images",
    "images_in_dataset": "number of images in the data set, unreadable ones included",
    "skipped": "unreadable test images that were left out",
    "noted_images": "test images that were evaluated and are unusual, such as those without contrast",
    "ties": "per method, images for which several classes share the highest score",
    "num_classes": "number of classes",
    "encoder": "inputs of the encoder, with the hash of its weights",
    "llm": "inputs of the prompt generator; null if it was not used",
    "diffuser": "inputs of the diffuser; null if it was not used",
    "scales": "inputs of the scales",
    "text": "the sentences that stand for the classes, and those of further text baselines; null without a text tower",
    "prompts_per_class": "prompts used per class",
    "images_per_prompt": "synthetic images per prompt",
    "seed": "seed of prompts and noise",
    "templated_prompts": "per class, the number of template sentences in place of prompts of a language model",
    "missing_images": "synthetic images that could not be generated",
    "protocol": "the protocol",
    "predictor": "per method, what its scores come from: rule, selection, text weight, or a trained predictor",
    "seen": "per method, the data of the evaluated domain that it has seen",
    "metrics": "metrics of the method",
    "baselines": "metrics of each baseline",
    "baseline": "metrics of the text baseline; null without a text tower",
    "student": "the student; null for other methods",
    "prompt_tuning": "the tuned prompts; null for other methods",
    "ood": "the evaluation on each out-of-distribution set",
    "pools": "accuracies of transductive rules over pools; empty unless `pools=realistic`",
    "membership": "membership inference; null unless `membership=true`",
    "paired": "paired test of the method against each baseline",
    "detectable": "the smallest difference that a paired test detects on this data set",
    "confidence": "calibration of the confidence",
    "diagnostics": "rank correlation of each class diagnostic with accuracy; null without synthetic images",
    "stages": "what each stage computed, reused and took",
    "cost": "costs, including those of reused entries",
    "store": "store keys of the prompts, images and features",
    "config": "the resolved config",
    "versions": "versions of the packages",
    "git_commit": "commit of the checkout; null outside of one",
}
"""What each field of result.json means."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the markers of a page, as mkdocs' hook of this name."""
    return MARKER.sub(lambda match: "\n".join(GENERATORS[match.group(1)]()), markdown)


# ------------------------------------------------------------------------------------------------------------- config


def config_reference() -> Iterator[str]:
    """Yields the lines about the values at the top level and about each group of conf/.

    Raises:
        ValueError: If a group of conf/ is not described in `GROUPS`.
    """
    conf = ROOT / "conf"
    groups = {_group_of(path, conf) for path in conf.glob("*/**/*.yaml")}
    if groups != set(GROUPS):
        raise ValueError(f"GROUPS and conf/ differ: {sorted(groups ^ set(GROUPS))}; describe each group")
    defaults = _default_choices(conf / "evaluate.yaml")
    yield "## Top-level values\n"
    yield "| value | default | meaning |\n|---|---|---|"
    for key, value, comment in _values(conf / "evaluate.yaml"):
        yield f"| `{key}` | `{value}` | {_cell(comment)} |"
    yield "\n`train.py` also has:\n"
    yield "| value | default | meaning |\n|---|---|---|"
    for key, value, comment in _values(conf / "train.yaml"):
        yield f"| `{key}` | `{value}` | {_cell(comment)} |"
    for group, description in GROUPS.items():
        yield f"\n## {group}\n\n{description}\n"
        yield "| choice | description |\n|---|---|"
        paths = sorted(path for path in (conf / group).rglob("*.yaml"))
        for path in paths:
            choice = path.relative_to(conf / group).with_suffix("").as_posix()
            mark = " (default)" if defaults.get(group) == choice else ""
            yield f"| `{choice}`{mark} | {_cell(_head_comment(path))} |"
        for path in paths:
            yield f'\n??? abstract "`conf/{path.relative_to(conf).as_posix()}`"\n'
            yield "    ```yaml"
            for line in path.read_text(encoding="utf-8").splitlines():
                yield f"    {line}".rstrip()
            yield "    ```"


def _group_of(path: Path, conf: Path) -> str:
    first, second, *_ = path.relative_to(conf).parts
    return f"hydra/{second}" if first == "hydra" else first


def _default_choices(path: Path) -> dict[str, str]:
    """Returns the default choice of each group of a root config."""
    entries = re.findall(r"^  - ([\w/]+): (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(entries)


def _values(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields key, default and comment of each value of a root config; a comment line belongs to the line below it."""
    above = ""
    parent = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            above = line.removeprefix("# ")
            continue
        match = re.fullmatch(r"( *)([\w{}$./]+):(?: (.*?))?(?:  # (.*))?", line)
        if match:
            indent, key, value, comment = match.groups()
            if not indent:
                parent = key
            # `_target_` names a class, which is not meant to be changed.
            is_shown = parent not in ("defaults", "hydra") and key != "_target_"
            if value is not None and is_shown:
                yield f"{parent}.{key}" if indent else key, value, comment or above
        above = ""


def _head_comment(path: Path) -> str:
    """Returns the comment at the top of a YAML file as one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


# ---------------------------------------------------------------------------------------------------------------- cli


def cli_reference() -> Iterator[str]:
    """Yields the lines about each subcommand of `lgclip`."""
    os.environ["COLUMNS"] = "100"  # argparse wraps its usage by the terminal
    from lgclip.cli import main

    make_parser: Callable[[], argparse.ArgumentParser] = getattr(main, "build_parser", None) or main._parser
    yield from _command(make_parser(), 2, "")


def _command(parser: argparse.ArgumentParser, level: int, summary: str) -> Iterator[str]:
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if subparsers:
        for action in subparsers:
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in action.choices.items():
                yield from _command(child, level, helps.get(name, ""))
        return
    yield f"\n{'#' * level} {parser.prog}\n"
    if summary:
        yield f"{summary[0].upper()}{summary[1:]}.\n"
    yield f"```text\n{parser.format_usage().strip()}\n```\n"
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        help_text = (action.help or "").replace("%%", "%")
        if action.choices:
            help_text = f"{help_text} ({', '.join(map(str, action.choices))})".strip()
        rows.append(f"| `{name}` | {_cell(help_text)} |")
    if rows:
        yield "| argument | meaning |\n|---|---|"
        yield from rows


# ------------------------------------------------------------------------------------------------------------- result


def result_reference() -> Iterator[str]:
    """Yields the lines about each field of result.json.

    Raises:
        ValueError: If the fields are not those that `FIELDS` describes.
    """
    schema = json.loads((ROOT / "docs" / "result.schema.json").read_text(encoding="utf-8"))
    properties: Mapping[str, Any] = schema["properties"]
    if set(properties) != set(FIELDS):
        raise ValueError(f"FIELDS and the schema differ: {sorted(set(properties) ^ set(FIELDS))}; describe each field")
    yield "## Fields\n"
    yield "| field | type | meaning |\n|---|---|---|"
    for name, value in properties.items():
        yield f"| `{name}` | {_type(value)} | {_cell(FIELDS[name])} |"
    for name, definition in sorted(schema["$defs"].items()):
        yield f"\n## {name}\n\n{definition.get('description', '')}\n"
        yield "| field | type | required |\n|---|---|---|"
        required = set(definition.get("required", ()))
        for field, value in definition["properties"].items():
            yield f"| `{field}` | {_type(value)} | {'yes' if field in required else 'no'} |"


def _type(value: Mapping[str, Any]) -> str:
    """Returns the type of a JSON Schema value as text, with links to the other tables of the page."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        kinds = list(dict.fromkeys(_type(choice) for choice in value["anyOf"]))
        if "number" in kinds and "integer" in kinds:
            kinds.remove("integer")
        return " or ".join(kinds)
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}" if value.get("items") else "list"
    if value.get("type") == "object":
        entries = value.get("additionalProperties")
        return f"object of {_type(entries)}" if isinstance(entries, Mapping) and entries else "object"
    return str(value.get("type", "any"))


def _cell(text: str) -> str:
    """Returns a text as it is shown in a cell of a table."""
    text = text.replace("|", "\\|").replace("<", "&lt;")
    # Addresses become links only in angle brackets.
    return re.sub(r"https?://[^\s,;)]*[^\s,;.)]", lambda match: f"<{match.group(0)}>", text)


GENERATORS = {"config": config_reference, "cli": cli_reference, "result": result_reference}

if __name__ == "__main__":
    print("\n".join(GENERATORS[sys.argv[1]]()))
