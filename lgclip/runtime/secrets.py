"""Rejects keys and passwords in configs, and hides them in output.

A run's config is written to its folder (Hydra's `.hydra`, result.json) and to the logger, an override to a sweep's
list of jobs. A value that looks like a key is therefore rejected before Hydra writes anything; no message repeats it.
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
"""Minimum number of characters of a variable's value that counts as a key: shorter ones match by chance."""

_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials",
          "authorization", "bearer", "cookie"}  # fmt: skip
_OF_MODELS = {"bos", "class", "cls", "end", "eos", "image", "mask", "pad", "sep", "start", "stop", "unk"}
"""Prefixes of settings such as `eos_token`, which name tokens of a vocabulary."""
_NAMELESS = {"", "null", "none", "???", "true", "false", "''", '""'}

_FORMATS = re.compile(
    r"(?<![\w-])(?:sk-(?=[\w-]*\d)[\w-]{20,}|xai-\w{20,}|gsk_\w{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\b[Bb]earer\s+[\w.~+/=-]{12,}"
)
_ADDRESS = re.compile(r"(?:https?|wss?)://[^\s/?#@]+@|[a-zA-Z][\w+.-]{0,40}://[^\s/?#@:]*:[^\s/?#@]+@")
_PASSWORD = re.compile(r"[a-zA-Z][\w+.-]{0,40}://(?:[^\s/?#@:]*:)?([^\s/?#@]+)@")
_QUERY = re.compile(r"[?&;#]([\w.-]+)=[^&\s]")
_SIGNED = {"sig", "signature", "auth", "code"}
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([A-Za-z_]\w*)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_INSIDE = re.compile(r"(?<![\w-])([\w-]+)['\"]?\s*:\s*['\"]?([^\s,{}\[\]'\"]+)")


class KeyInConfigError(ValueError):
    """Reports that a config or command line holds what looks like a key; the message says where, but not the value."""


class SecretsCheck(Callback):
    """Ends a run whose config holds a key, before Hydra writes the config.

    Hydra turns exceptions of a callback into warnings, so the process is ended instead.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _end(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _end(config)


def _end(config: DictConfig) -> None:
    try:
        refuse_secrets(config)
    except KeyInConfigError as error:
        raise SystemExit(f"error: {error}") from None


def refuse_secrets(config: DictConfig) -> None:
    """Checks a whole config, including Hydra's own section, as composed from files and command line.

    Args:
        config: The config with its section `hydra`, which is recorded with unresolved interpolations; the rest is
            recorded resolved.

    Raises:
        KeyInConfigError: If a value looks like a key by its name, its form or its position in a URL, equals the value
            of an environment variable with such a name, or interpolates such a variable.
    """
    secrets = _secrets()
    for place, raw, value in _leaves(config, ""):
        # Hydra keeps the command line's words here: "llm.api_key=..." is a name and a value, not one value.
        if re.match(r"hydra\.overrides\.(task|hydra)\[", place):
            _argument(str(raw), secrets)
            continue
        variable: re.Match[str] | None = None
        if isinstance(raw, str):
            variable = _FROM_ENVIRONMENT.search(raw)
        # Hydra's own part is recorded with its interpolations unresolved, so no value gets into a file.
        if variable and place.startswith("hydra."):
            continue
        if variable and _is_variable_of_a_key(variable[1]):
            raise _refused(place, f"it asks for the environment variable {variable[1]}, whose value would be recorded")
        for text in (raw, value):
            _scan(place, text, secrets)


def refuse_on_command_line(arguments: Sequence[str]) -> None:
    """Checks the arguments of a command line before Hydra, whose own errors would repeat them.

    Raises:
        KeyInConfigError: As in `refuse_keys`.
    """
    secrets = _secrets()
    for argument in arguments:
        _argument(argument, secrets)


def hidden(text: str) -> str:
    """Returns a text with `***` in place of the environment's keys and passwords."""
    for secret in _secrets().values():
        text = text.replace(secret, "***")
    return text


def _argument(argument: str, secrets: dict[str, str]) -> None:
    override = re.fullmatch(r"[+~]*+([^=\s'\"{\[]+)=(.*)", argument, re.DOTALL)
    if not override:
        _scan("the command line", argument, secrets)
        return
    name = override[1].partition("@")[0]  # without the package, as in group@package=choice
    value = override[2]
    variable = _FROM_ENVIRONMENT.search(value)
    if variable and not name.startswith("hydra.") and _is_variable_of_a_key(variable[1]):
        raise _refused(name, f"it asks for the environment variable {variable[1]}, whose value would be recorded")
    # A number is looked at as Hydra will read it: `max_token=100` is named like a key, but no text.
    _scan(name, int(value) if value.isdecimal() else _unquoted(value), secrets)
    # A mapping has nested names. Parsing costs, and most values have no braces.
    if "{" in value:
        for place, inside in _parsed(argument, name):
            _scan(place, inside, secrets)


def _parsed(argument: str, name: str) -> Iterator[tuple[str, Any]]:
    """Returns the values of a mapping or list on the command line, by name."""
    try:
        value = OverridesParser.create().parse_override(argument).value()
    except HydraException:
        # Hydra will refuse it as well, and its message shows the text: what looks like a key must be found before.
        yield from ((f"{name}.{key}", text) for key, text in _INSIDE.findall(argument))
        return
    # A stack instead of recursion, since a command line may be nested as deeply as somebody likes.
    nodes = [(name, value)]
    while nodes:
        place, node = nodes.pop()
        match node:
            case dict():
                nodes += [(f"{place}.{getattr(key, 'text', key)}", inside) for key, inside in node.items()]
            case list():
                nodes += [(place, inside) for inside in node]
            case QuotedString():
                yield place, node.text
            case _:
                yield place, node


def _leaves(node: DictConfig | ListConfig, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields each value of a config: its path, its raw form and its resolved value if it can be resolved."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    is_list = isinstance(node, ListConfig)
    keys: Any = range(len(node)) if is_list else list(node)
    for key in keys:
        below = f"{place}[{key}]" if is_list else f"{place}.{key}".removeprefix(".")
        # The node and not `node[key]`, which would resolve an interpolation and lose how it was written.
        inside = node._get_node(key)
        if isinstance(inside, DictConfig | ListConfig) and not inside._is_interpolation():
            yield from _leaves(inside, below)
        elif isinstance(inside, Node):
            raw = inside._value()
            value: Any = None
            if inside._is_interpolation() and not below.startswith("hydra."):
                try:
                    value = node[key]
                except OmegaConfBaseException:  # it needs what is there only when the run has begun
                    value = None
            # An interpolation to a whole section: its values are checked where they are defined.
            if OmegaConf.is_config(value):
                value = None
            yield below, raw, value


def _scan(place: str, value: Any, secrets: dict[str, str]) -> None:
    """Rejects a value by its name, its form, or the values in the environment."""
    text = ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value)
    if text.strip().lower() in _NAMELESS:
        return
    *_, last = re.split(r"[.\[\]]+", place.rstrip("]"))
    parts = _parts(last)
    # `api_key_env` and its kind name a variable; a key put there by mistake is reported without repeating it.
    if parts[-1:] == ["env"] and _names_a_key(parts[:-1]):
        if not _VARIABLE.fullmatch(text):
            raise _refused(place, "it is the NAME of an environment variable, in capitals, not a key")
        return
    # Numbers are allowed under `key` and `token`, as in `max_token: 15`. A password may be a number.
    plain = isinstance(value, str) and not text.startswith("${")
    if _names_a_key(parts) and (plain or parts[-1] not in ("key", "token")):
        raise _refused(place, "it is named like one")
    if _FORMATS.search(text):
        raise _refused(place, "it has the form of one")
    if _ADDRESS.search(text) or _has_key_in_query(text):
        raise _refused(place, "it is an address with a user, a password or a key in it")
    for name, secret in secrets.items():
        if secret in text:
            raise _refused(place, f"it holds the value of the environment variable {name}")


def _has_key_in_query(text: str) -> bool:
    """Checks whether a text is a URL with a query argument such as `?token=...` or `&sig=...`."""
    if "://" not in text:
        return False
    for name in _QUERY.findall(text):
        parts = _parts(name)
        if parts and (_names_a_key(parts) or parts[-1] in _SIGNED):
            return True
    return False


def _refused(place: str, why: str) -> KeyInConfigError:
    return KeyInConfigError(
        f"{place}: this looks like a key or a password ({why}), and a run's config is written down. Put it into the "
        "environment: a server's into the variable that llm.api_key_env names, Hugging Face's into HF_TOKEN, "
        "Weights & Biases' into WANDB_API_KEY"
    )


def _parts(name: str) -> list[str]:
    """Returns the words of a name: `apiKey`, `api_key` and `X-Api-Key` end with `key`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def _names_a_key(parts: Sequence[str]) -> bool:
    if not parts or parts[-1] not in _WORDS:
        return False
    return not (parts[-1] == "token" and parts[:-1] and parts[-2] in _OF_MODELS)


def _is_variable_of_a_key(name: str) -> bool:
    return bool(_WORDS & set(_parts(name.lower())))


def _secrets() -> dict[str, str]:
    """Returns keys and passwords of the environment by variable name, the longest first."""
    secrets: dict[str, str] = {}
    for name, value in os.environ.items():
        # A path is the place of a key file (SSH_KEY_FILE and the like), which may be shown.
        if _is_variable_of_a_key(name) and not value.startswith(("/", "~", ".")):
            secrets[name] = value.strip()
        elif "://" in value and (inside := _PASSWORD.search(value)):  # as proxies have it
            secrets[name] = inside[1]
    long_enough = [(name, value) for name, value in secrets.items() if len(value) >= LEAST]
    # The longest first: if one holds another, hiding the shorter one would leave the rest of the longer one visible.
    return dict(sorted(long_enough, key=lambda entry: -len(entry[1])))


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
