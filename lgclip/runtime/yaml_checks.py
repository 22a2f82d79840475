"""Reads YAML of others within limits: a few hundred bytes of aliases or interpolations expand to gigabytes.

PyYAML and OmegaConf have no limits of their own. A text is scanned as a stream of events, which expands nothing.
"""

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig

from lgclip.runtime.regular_files import IrregularFileError, regular_stat

MAX_CONFIG_BYTES = 1_000_000
"""Maximum size of a config file; the largest of the package has 3 kB."""

MAX_CARD_BYTES = 4_000_000
"""Maximum size of a card's header; one with 21,000 class names has 700 kB."""

MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_EXPANDED = 20_000_000
"""Maximum number of values, of levels, and of characters once all aliases and interpolations are expanded."""

_MAX_FILES = 10_000
_REFERENCE = re.compile(r"\$\{\s*+(\.*+)([^${}:\s]++)\s*+\}")
_HEADER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UnsafeYamlError(ValueError):
    """Reports a YAML file that is too large, too deep, or expands too far; the message names the file."""


class _PlainLoader(_Loader):
    """Reads whole numbers as such, nothing as None, and everything else as text."""


_PlainLoader.yaml_implicit_resolvers = {}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9]\d{0,17})$"), list("-0123456789"))
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])


def read_card(path: Path) -> dict[str, Any]:
    """Returns the header of a card, a README.md of the hub, with texts and whole numbers as its only values.

    Raises:
        UnsafeYamlError: If it is too large, has aliases, or is no mapping.
        yaml.YAMLError: If it is no YAML.
        UnicodeDecodeError: If it is no UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_CARD_BYTES)
    # The rest may be cut within a letter; a header that is not complete by then is none.
    header = _HEADER.match(content.decode(errors="replace" if len(content) == MAX_CARD_BYTES else "strict"))
    if header is None:
        if len(content) == MAX_CARD_BYTES and content.lstrip().startswith(b"---"):
            raise UnsafeYamlError(f"{path}: its header is larger than {MAX_CARD_BYTES / 1e6:.0f} MB")
        return {}
    scan(header[1], str(path), allows_aliases=False)
    metadata = yaml.load(header[1], Loader=_PlainLoader)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise UnsafeYamlError(f"{path}: its header is no mapping")
    return _with_text_keys(metadata)


def _with_text_keys(node: Any) -> Any:
    """Returns plain values with texts as the keys of their mappings: `0: airplane` has a number as its key."""
    match node:
        case dict():
            return {str(key): _with_text_keys(value) for key, value in node.items()}
        case list():
            return [_with_text_keys(value) for value in node]
    return node


def scan(text: str, where: str, *, allows_aliases: bool) -> None:
    """Checks the size of a YAML text once it is expanded, without expanding it.

    Raises:
        UnsafeYamlError: If it exceeds a limit, refers to itself, or has an alias where none is allowed.
        yaml.YAMLError: If it is no YAML.
    """
    anchors: dict[str, tuple[int, int]] = {}
    # Each open collection: its anchor, and the values and characters in it so far. The first is the text itself.
    levels: list[list[Any]] = [[None, 0, 0]]
    for event in yaml.parse(text, Loader=_Loader):
        count, size = 0, 0
        match event:
            case yaml.AliasEvent():
                if not allows_aliases:
                    raise UnsafeYamlError(f"{where}: it has the alias *{event.anchor}, which a card may not have")
                if event.anchor not in anchors:
                    raise UnsafeYamlError(f"{where}: the alias *{event.anchor} refers to itself or to nothing")
                count, size = anchors[event.anchor]
            case yaml.ScalarEvent():
                count, size = 1, len(event.value)
                if event.anchor:
                    anchors[event.anchor] = (count, size)
            case yaml.CollectionStartEvent():
                levels.append([event.anchor, 1, 0])
            case yaml.CollectionEndEvent():
                anchor, count, size = levels.pop()
                if anchor:
                    anchors[anchor] = (count, size)
        levels[-1][1] += count
        levels[-1][2] += size
        if len(levels) > MAX_DEPTH or levels[-1][1] > MAX_NODES or levels[-1][2] > MAX_EXPANDED:
            raise UnsafeYamlError(
                f"{where}: it expands to more than {MAX_NODES:,} values, {MAX_DEPTH} levels or "
                f"{MAX_EXPANDED / 1e6:.0f} MB; write fewer aliases"
            )


def check_config_folders(arguments: Sequence[str], script: Path) -> None:
    """Checks the YAML files of the folders that a command line adds to the package's configs, before Hydra reads them.

    Args:
        arguments: The command line.
        script: The entry script, relative to which Hydra reads `--config-path`.

    Raises:
        UnsafeYamlError: If a file is too large or expands too far.
    """
    if not any(
        argument.startswith("-c") or "--config-" in argument or "searchpath" in argument for argument in arguments
    ):
        return
    from hydra._internal.utils import get_args_parser

    parsed, _ = get_args_parser().parse_known_args(list(arguments))
    for folder in _folders(parsed, script):
        files = sorted(folder.rglob("*.yaml"))
        if len(files) > _MAX_FILES:
            raise UnsafeYamlError(f"{folder}: {len(files):,} YAML files are no folder of configs; name a smaller one")
        for path in files:
            _check_file(path)


def _folders(parsed: Namespace, script: Path) -> Iterator[Path]:
    """Yields the folders of configs that a command line names."""
    if parsed.config_dir:
        yield Path(parsed.config_dir)
    if parsed.config_path:
        yield Path(parsed.config_path)
        yield script.parent / parsed.config_path
    for override in parsed.overrides:
        if override.lstrip("+").startswith("hydra.searchpath="):
            for place in re.split(r"[\[\],'\"=]+", override)[1:]:
                if not place.startswith("pkg://"):
                    yield Path(place.removeprefix("file://"))


def _check_file(path: Path) -> None:
    if path.is_dir() or not path.exists():
        return
    try:
        regular_stat(path)
    except IrregularFileError as error:
        raise UnsafeYamlError(str(error)) from None
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise UnsafeYamlError(
            f"{path}: a config of {size / 1e6:.1f} MB; the limit is {MAX_CONFIG_BYTES / 1e6:.0f} MB, and lists belong "
            "into files of their own, such as llm.path"
        )
    try:
        scan(path.read_text(encoding="utf-8"), str(path), allows_aliases=True)
    except UnicodeDecodeError as error:
        raise UnsafeYamlError(f"{path}: a config must be UTF-8 ({error})") from error
    except yaml.YAMLError:
        return  # not every file is composed, and Hydra says better what is wrong with one


def check_expansion(config: DictConfig) -> None:
    """Checks that the interpolations of a config expand to no more than a config can hold, without expanding them.

    Raises:
        UnsafeYamlError: If they expand further.
    """
    sizes: dict[int, int] = {}

    def size_of(node: Any, depth: int = 0) -> int:
        """Returns the characters of a node; what refers to itself counts as nothing, as OmegaConf reports it."""
        if id(node) in sizes:
            return sizes[id(node)]
        sizes[id(node)] = 0
        total = 1
        raw = node._value() if node is not None else None
        if isinstance(raw, str):
            total += len(raw)
            for dots, key in _REFERENCE.findall(raw):
                target = _target(config, node, dots, key)
                if target is not None and depth < 500:
                    total += size_of(target, depth + 1)
        elif isinstance(node, DictConfig | ListConfig) and raw is not None:
            keys: Any = list(node) if isinstance(node, DictConfig) else range(len(node))
            for key in keys:
                total += size_of(node._get_node(key), depth + 1)
        sizes[id(node)] = total
        if total > MAX_EXPANDED:
            place = "" if node is None else node._get_full_key(None)
            raise UnsafeYamlError(f"{place}: its interpolations expand to more than {MAX_EXPANDED / 1e6:.0f} MB")
        return total

    size_of(config)


def _target(config: DictConfig, node: Any, dots: str, key: str) -> Any:
    """Returns the node that an interpolation refers to; None if it does not exist or is reached by another one."""
    place: Any = config
    if dots:
        place = node._get_parent()
        for _ in dots[1:]:
            place = None if place is None else place._get_parent()
    for part in re.split(r"[.\[\]]+", key.strip("[]")):
        # By way of an interpolation, such as `${a.b}` where a is ${c}.
        hops = 0
        while isinstance(place, DictConfig | ListConfig) and isinstance(place._value(), str) and hops < 50:
            reference = _REFERENCE.fullmatch(place._value().strip())
            place = _target(config, place, *reference.groups()) if reference else None
            hops += 1
        if isinstance(place, DictConfig):
            place = place._get_node(part)
        elif isinstance(place, ListConfig) and part.isdigit() and int(part) < len(place):
            place = place._get_node(int(part))
        else:
            return None
    return place
