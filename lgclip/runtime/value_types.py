"""Compares the names and values of a config with the parameters of their target, before the target is called.

Python checks no annotation, so a value of another type fails late and obscurely, or passes: the word `no` is true.
Pydantic compares the values as JSON, strictly: 2.5 is no integer, "10" no number, and 1 no truth value.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from lgclip.runtime.config_errors import did_you_mean
from lgclip.runtime.terminal import single_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_NOUNS: Mapping[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "text",
    NoneType: "null",
}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that a config can set."""

_PLURALS: Mapping[Any, str] = {int: "integers", float: "numbers", str: "texts"}

_ABSENT = object()

_WORD = re.compile(r"[A-Za-z_./~][\w./~-]*")
_LONGEST = 80  # characters of a value in an error
_LISTED = 24  # names in an error

# A lone half of a surrogate pair is text for Python and no JSON for pydantic.
_SURROGATE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")


def check_types(key: str, node: DictConfig, target: Any) -> None:
    """Checks the values of a node against the annotations of the target's parameters.

    Parts within the node, values that are no plain data, and parameters with other types than numbers, texts,
    truth values, lists and mappings of them are left to the target.

    Args:
        key: Full key of the node, such as `encoder`.
        node: The config of the target, with interpolations resolved.
        target: A class or function.

    Raises:
        ValueError: If a value has another type.
    """
    types = _parameter_types(target)
    for name in node:
        if name not in types or OmegaConf.is_missing(node, name):
            continue
        value = node[name]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        check_type(f"{key}.{name}" if key else str(name), value, types[name])


def check_names(key: str, node: DictConfig, target: Any) -> None:
    """Checks that the target takes every value of a node: `+encoder.batch=8` adds a value that nothing reads.

    Args:
        key: Full key of the node, such as `encoder`.
        node: The config of the target.
        target: A class or function.

    Raises:
        ValueError: If a value is no parameter of the target.
    """
    names = _parameter_names(target)
    if names is None:
        return
    for name in map(str, node):
        # Hydra's own, such as `_target_` and `_convert_`.
        if not name.startswith("_"):
            check_name(name, names, key, target.__name__)


def check_name(name: str, known: Sequence[str], key: str, owner: str) -> None:
    """Checks that a key of a config is known.

    Args:
        name: The last part of the key.
        known: Names that may stand there.
        key: The key without its last part; empty at the top of the config.
        owner: The noun for what reads the values, such as the name of a class.

    Raises:
        ValueError: If it is not.
    """
    if name in known:
        return
    prefix = f"{key}." if key else ""
    # Lightning's Trainer takes fifty.
    listed = f"; it has {', '.join(known)}" if 0 < len(known) <= _LISTED else ""
    raise ValueError(f"{prefix}{name}: {owner} has no such setting{listed}{did_you_mean(name, known, key)}")


def check_settings(config: DictConfig, types: Mapping[str, Any]) -> None:
    """Checks settings of a run that belong to no part.

    Args:
        config: The run's config.
        types: Annotations by key; a section comes before its values. Keys that the config does not have are left out.

    Raises:
        ValueError: If a value has another type.
    """
    for key, hint in types.items():
        value = OmegaConf.select(config, key, default=_ABSENT)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        if value is not _ABSENT:
            check_type(key, value, hint)


def check_type(key: str, value: Any, hint: Any) -> None:
    """Checks one value against a type.

    Args:
        key: Full key of the value.
        value: Plain data.
        hint: An annotation.

    Raises:
        ValueError: If the value has another type.
    """
    if _has_parts(value) or not _is_plain(hint):
        return
    try:
        data = json.dumps(value)
    except (TypeError, ValueError):  # an object that Python code handed over
        return

    from pydantic import ValidationError

    try:
        _adapter(hint).validate_json(_SURROGATE.sub("?", data), strict=True)
    except ValidationError:
        raise ValueError(f"{key}={_shown(value)}: it must be {_described(hint)}{_quoting(key, value, hint)}") from None


def _has_parts(value: Any) -> bool:
    """Returns whether a value holds a part of its own, which its own target checks."""
    if isinstance(value, dict):
        return "_target_" in value or any(_has_parts(item) for item in value.values())
    return isinstance(value, list) and any(_has_parts(item) for item in value)


@cache
def _parameter_types(target: Any) -> dict[str, Any]:
    """Returns the annotations of a target's parameters by name."""
    types: dict[str, Any] = {}
    for function in _constructors(target):
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.name in hints and parameter.kind is not parameter.VAR_KEYWORD:
                types.setdefault(parameter.name, hints[parameter.name])
        # Further arguments go to the base class.
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return types


@cache
def _parameter_names(target: Any) -> tuple[str, ...] | None:
    """Returns the names of a target's parameters; None if it takes any."""
    names: list[str] = []
    for function in _constructors(target):
        parameters = inspect.signature(function).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        names += [
            parameter.name for parameter in parameters if parameter.kind in _NAMED and parameter.name not in names
        ]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return tuple(name for name in names if name != "self")
    # A class without a constructor takes nothing; one of C code, or with `__new__`, does not say what it takes.
    takes_nothing = isinstance(target, type) and target.__init__ is object.__init__ and target.__new__ is object.__new__
    return () if takes_nothing else None


def _constructors(target: Any) -> Iterator[Any]:
    if not isinstance(target, type):
        yield target
        return
    for base in target.__mro__:
        if "__init__" in vars(base) and base is not object:
            yield vars(base)["__init__"]


@cache
def _adapter(hint: Any) -> "TypeAdapter[Any]":
    # Imported here: a run that only copies a finished one builds nothing.
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _is_plain(hint: Any) -> bool:
    """Returns whether a type consists of what YAML can hold."""
    if hint is Any or hint in _NOUNS:
        return True
    is_container = get_origin(hint) in (list, tuple, dict, Sequence, Mapping, Union, UnionType)
    return is_container and all(_is_plain(argument) for argument in get_args(hint))


def _described(hint: Any) -> str:
    """Describes a type in words."""
    if hint in _NOUNS:
        return _NOUNS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        nouns = dict.fromkeys(_described(argument) for argument in arguments)
        return " or ".join(nouns)
    if origin in (dict, Mapping):
        return "a mapping {NAME: VALUE}"
    return f"a list of {_PLURALS.get(arguments[0], 'values')}, as in [A,B]"


def _shown(value: Any) -> str:
    # A word as it was typed; quotes distinguish the text "7" from the number.
    is_word = isinstance(value, str) and _WORD.fullmatch(value)
    text = single_line(value if is_word else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _quoting(key: str, value: Any, hint: Any) -> str:
    """Returns how a word that Hydra reads as a number is written as text."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if str not in members or not isinstance(value, int | float) or {int, float} & {*members}:
        return ""
    return f", which quotes make of it: '{key}=\"{_shown(value)}\"'"
