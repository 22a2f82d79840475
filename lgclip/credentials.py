"""Keys and passwords: refused where they would be written down with a config, and hidden in what is shown.

A run's config goes into its folder (Hydra's `.hydra`, result.json) and to the logger, an override into a sweep's list
of jobs. So what looks like a key is refused before Hydra writes anything; no message repeats it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

LEAST = 12
"""Characters of a variable's value that is taken for a key: shorter ones stand in other words by chance."""

_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials",
          "authorization", "bearer", "cookie"}  # fmt: skip
_OF_MODELS = {"bos", "class", "cls", "end", "eos", "image", "mask", "pad", "sep", "start", "stop", "unk"}
"""`eos_token` and its kin are words of a vocabulary."""
_NAMELESS = {"", "null", "none", "???", "true", "false", "''", '""'}

_FORMATS = re.compile(
    r"(?<![\w-])(?:sk-(?=[\w-]*\d)[\w-]{20,}|xai-\w{20,}|gsk_\w{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\b[Bb]earer\s+[\w.~+/=-]{12,}"
)
_ADDRESS = re.compile(r"(?:https?|wss?)://[^\s/?#@]+@|[a-zA-Z][\w+.-]*://[^\s/?#@:]*:[^\s/?#@]+@")
_PASSWORD = re.compile(r"[a-zA-Z][\w+.-]*://(?:[^\s/?#@:]*:)?([^\s/?#@]+)@")
_QUERY = re.compile(r"[?&;#]([\w.-]+)=[^&\s]")
_SIGNED = {"sig", "signature", "auth", "code"}
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([A-Za-z_]\w*)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_INSIDE = re.compile(r"([\w-]+)['\"]?\s*:\s*['\"]?([^\s,{}\[\]'\"]+)")


class KeyInConfigError(ValueError):
    """A config or a command line holds what looks like a key; the message says where, and not what."""


class NoKeys(Callback):
    """Ends a run whose config holds a key, before Hydra writes the config down.

    Hydra turns a callback's errors into warnings, so the process is ended instead.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _end(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _end(config)


def _end(config: DictConfig) -> None:
    try:
        refuse_keys(config)
    except KeyInConfigError as error:
        raise SystemExit(f"error: {error}") from None


def refuse_keys(config: DictConfig) -> None:
    """Looks at a whole config, Hydra's own part too, as files and command line have made it.

    Args:
        config: The config with its section `hydra`, which is recorded with its interpolations as they are; the rest
            is recorded with what they stand for.

    Raises:
        KeyInConfigError: If a value looks like a key by its name, its form or its place in an address, is that of an
            environment variable that is named like one, or asks for such a variable.
    """
    secrets = _secrets()
    for place, raw, value in _leaves(config, ""):
        own = place.startswith("hydra.")
        if re.match(r"hydra\.overrides\.(task|hydra)\[", place):
            _argument(str(raw), secrets)
            continue
        asked = _FROM_ENVIRONMENT.search(raw) if isinstance(raw, str) else None
        if asked and own:
            continue
        if asked and _is_variable_of_a_key(asked[1]):
            raise _refused(place, f"it asks for the environment variable {asked[1]}, whose value would be recorded")
        for said in (raw, value):
            _look(place, said, secrets)


def refuse_on_command_line(arguments: Sequence[str]) -> None:
    """Looks at the words of a command line, before Hydra does, whose own errors repeat them.

    Raises:
        KeyInConfigError: As of `refuse_keys`.
    """
    secrets = _secrets()
    for argument in arguments:
        _argument(argument, secrets)


def hidden(text: str) -> str:
    """A text with `***` in place of the environment's keys and passwords."""
    for secret in _secrets().values():
        text = text.replace(secret, "***")
    return text


def _argument(argument: str, secrets: dict[str, str]) -> None:
    override = re.fullmatch(r"[+~]*([^=\s'\"{\[]+)=(.*)", argument, re.DOTALL)
    if not override:
        _look("the command line", argument, secrets)
        return
    name, value = override[1].partition("@")[0], override[2]
    asked = _FROM_ENVIRONMENT.search(value)
    if asked and not name.startswith("hydra.") and _is_variable_of_a_key(asked[1]):
        raise _refused(name, f"it asks for the environment variable {asked[1]}, whose value would be recorded")
    _look(name, int(value) if value.isdecimal() else _unquoted(value), secrets)
    for place, inside in _parsed(argument, name) if "{" in value else ():
        _look(place, inside, secrets)


def _parsed(argument: str, name: str) -> Iterator[tuple[str, Any]]:
    """The values of a mapping or list on the command line, by their names."""
    try:
        found = OverridesParser.create().parse_override(argument).value()
    except HydraException:  # which it will say itself, and show the text
        yield from ((f"{name}.{key}", value) for key, value in _INSIDE.findall(argument))
        return
    nodes = [(name, found)]
    while nodes:
        place, node = nodes.pop()
        match node:
            case dict():
                nodes += [(f"{place}.{getattr(key, 'text', key)}", inside) for key, inside in node.items()]
            case list():
                nodes += [(place, inside) for inside in node]
            case _:
                yield place, node.text if isinstance(node, QuotedString) else node


def _leaves(node: DictConfig | ListConfig, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Each value of a config: where it stands, as it is written, and what it stands for if that can be told."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    keys: Any = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        below = f"{place}[{key}]" if isinstance(node, ListConfig) else f"{place}.{key}".removeprefix(".")
        inside = node._get_node(key)
        if isinstance(inside, DictConfig | ListConfig) and not inside._is_interpolation():
            yield from _leaves(inside, below)
        elif isinstance(inside, Node):
            raw, value = inside._value(), None
            if inside._is_interpolation() and not below.startswith("hydra."):
                try:
                    value = node[key]
                except OmegaConfBaseException:  # it needs what is there only when the run has begun
                    value = None
            yield below, raw, None if OmegaConf.is_config(value) else value


def _look(place: str, value: Any, secrets: dict[str, str]) -> None:
    """Refuses a value by its name, its form, or what the environment holds."""
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if text.strip().lower() in _NAMELESS:
        return
    *_, last = re.split(r"[.\[\]]+", place.rstrip("]"))
    parts = _parts(last)
    if parts[-1:] == ["env"] and _names_a_key(parts[:-1]):
        if not _VARIABLE.fullmatch(text):
            raise _refused(place, "it is the NAME of an environment variable, in capitals, not a key")
        return
    plain = isinstance(value, str) and not text.startswith("${")
    if _names_a_key(parts) and (plain or parts[-1] not in ("key", "token")):
        raise _refused(place, "it is named like one")
    if _FORMATS.search(text):
        raise _refused(place, "it has the form of one")
    names = [name for name in _QUERY.findall(text) if "://" in text]
    if _ADDRESS.search(text) or any(
        _names_a_key(_parts(n)) or _parts(n)[-1:][0] in _SIGNED for n in names if _parts(n)
    ):
        raise _refused(place, "it is an address with a user, a password or a key in it")
    for name, secret in secrets.items():
        if secret in text:
            raise _refused(place, f"it holds the value of the environment variable {name}")


def _refused(place: str, why: str) -> KeyInConfigError:
    return KeyInConfigError(
        f"{place}: this looks like a key or a password ({why}), and a run's config is written down. Put it into the "
        "environment: a server's into the variable that llm.api_key_env names, Hugging Face's into HF_TOKEN, "
        "Weights & Biases' into WANDB_API_KEY"
    )


def _parts(name: str) -> list[str]:
    """The words of a name: `apiKey`, `api_key` and `X-Api-Key` have `key` as the last."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def _names_a_key(parts: Sequence[str]) -> bool:
    if not parts or parts[-1] not in _WORDS:
        return False
    return not (parts[-1] == "token" and parts[:-1] and parts[-2] in _OF_MODELS)


def _is_variable_of_a_key(name: str) -> bool:
    return bool(_WORDS & set(_parts(name.lower())))


def _secrets() -> dict[str, str]:
    """Keys and passwords of the environment, by their variable; the longest first."""
    found = {}
    for name, value in os.environ.items():
        if _is_variable_of_a_key(name) and not value.startswith(("/", "~", ".")):
            found[name] = value.strip()
        elif "://" in value and (inside := _PASSWORD.search(value)):  # as proxies have it
            found[name] = inside[1]
    return dict(sorted(((n, v) for n, v in found.items() if len(v) >= LEAST), key=lambda entry: -len(entry[1])))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
