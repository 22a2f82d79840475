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

from lgclip.runtime.api_keys import KeyBindingError, refuse_redirection
from lgclip.runtime.environment_secrets import KEY_FORMAT, hidden, is_secret_variable, names_a_secret, secret_values
from lgclip.runtime.yaml_checks import UnsafeYamlError, check_expansion

__all__ = [
    "KeyInConfigError", "SecretsCheck", "guard_environment", "hidden", "refuse_on_command_line", "refuse_secrets",
]  # fmt: skip

_WORDS = {
    "key", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials",
    "authorization", "bearer", "cookie", "pass", "pwd", "pat", "dsn", "webhook", "jwt",
}  # fmt: skip
_ENDINGS = ("password", "passwd", "apikey", "secretkey")
"""Ends of compounds such as `pgpassword`."""
_COUNTED = ("key", "token", "pass", "pat")
"""Names that may hold a number, as `max_token: 15` does. A password may be a number."""
_OF_MODELS = {"bos", "class", "cls", "end", "eos", "image", "mask", "pad", "sep", "start", "stop", "unk"}
"""Prefixes of settings such as `eos_token`, which name tokens of a vocabulary."""
_NAMELESS = {"", "null", "none", "???", "true", "false", "''", '""'}

_FORMATS = re.compile(rf"{KEY_FORMAT.pattern}|\b[Bb]earer\s+[\w.~+/=-]{{12,}}")
_ADDRESS = re.compile(r"(?:https?|wss?)://[^\s/?#@]+@|[a-zA-Z][\w+.-]{0,40}://[^\s/?#@:]*:[^\s/?#@]+@")
_QUERY = re.compile(r"[?&;#]([\w.-]+)=[^&\s]")
_SIGNED = {"sig", "signature", "auth", "code"}
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([A-Za-z_]\w*)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_STORAGE = "hydra.sweeper.storage"
"""The only value that may hold a secret of the environment: a database's address, which is recorded as written."""

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
        refuse_redirection(config.get("hydra", {}))
        refuse_secrets(config)
    except (KeyInConfigError, KeyBindingError, UnsafeYamlError) as error:
        raise SystemExit(f"error: {error}") from None


def guard_environment() -> None:
    """Replaces the resolver `oc.env`, so that no config can read a key or a password of the environment.

    What a config asks for can be written in ways that no search finds: in parts, escaped, or by an interpolation that
    yields another one. They all end in this resolver.
    """
    OmegaConf.register_new_resolver("oc.env", _environment_value, replace=True)


def _environment_value(name: str, *default: Any, _node_: Node | None) -> str | None:
    """Returns the value of an environment variable as `oc.env` of OmegaConf does, unless it is a secret.

    Raises:
        KeyInConfigError: If it is one.
        KeyError: If the variable is not set and there is no default.
    """
    place = "" if _node_ is None else str(_node_._get_full_key(None))
    if place != _STORAGE and (names_a_secret(str(name)) or is_secret_variable(str(name))):
        raise _refused(place or "a config", f"it asks for the environment variable {name}")
    if name in os.environ:
        return os.environ[name]
    if not default:
        raise KeyError(f"Environment variable '{name}' not found")
    return None if default[0] is None else str(default[0])


def refuse_secrets(config: DictConfig) -> None:
    """Checks a whole config, including Hydra's own section, as composed from files and command line.

    Args:
        config: The config with its section `hydra`, which is recorded with unresolved interpolations; the rest is
            recorded resolved.

    Raises:
        KeyInConfigError: If a value looks like a key by its name, its form or its position in a URL, equals the value
            of an environment variable with such a name, or interpolates such a variable.
        UnsafeYamlError: If the config's interpolations expand to more than a config can hold.
    """
    check_expansion(config)
    secrets = secret_values()
    for place, raw, value in _leaves(config, ""):
        # Hydra keeps the command line's words here: "llm.api_key=..." is a name and a value, not one value.
        if re.match(r"hydra\.overrides\.(task|hydra)\[", place):
            _argument(str(raw), secrets)
            continue
        if isinstance(raw, str) and (reason := _asks_for_secret(place, raw)):
            raise _refused(place, reason)
        for text in (raw, value):
            _scan(place, text, secrets)


def refuse_on_command_line(arguments: Sequence[str]) -> None:
    """Checks the arguments of a command line before Hydra, whose own errors would repeat them.

    Raises:
        KeyInConfigError: As in `refuse_keys`.
    """
    secrets = secret_values()
    for argument in arguments:
        _argument(argument, secrets)


def _asks_for_secret(place: str, raw: str) -> str:
    """Returns why an interpolation of environment variables is refused; empty if it is not."""
    # With nothing around it: the environment, and not a config, says which database the password is sent to.
    if place == _STORAGE and re.fullmatch(r"\$\{\s*oc\.env\s*:[^${}]*\}", raw.strip()):
        return ""
    for variable in _FROM_ENVIRONMENT.findall(raw):
        if names_a_secret(variable) or is_secret_variable(variable):
            return f"it asks for the environment variable {variable}, whose value would be recorded"
    return ""


def _argument(argument: str, secrets: dict[str, str]) -> None:
    override = re.fullmatch(r"[+~]*+([^=\s'\"{\[]+)=(.*)", argument, re.DOTALL)
    if not override:
        _scan("the command line", argument, secrets)
        if reason := _asks_for_secret("the command line", argument):
            raise _refused("the command line", reason)
        return
    name = override[1].partition("@")[0]  # without the package, as in group@package=choice
    value = override[2]
    if reason := _asks_for_secret(name, _unquoted(value)):
        raise _refused(name, reason)
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
            if inside._is_interpolation() and below != _STORAGE:
                value = _resolved(node, key, below)
            # A section that is defined elsewhere, or what a resolver makes, such as `oc.create`.
            if isinstance(value, DictConfig | ListConfig):
                yield from _values_of(value, below)
                value = None
            yield below, raw, value


def _resolved(node: Any, key: Any, place: str) -> Any:
    """Returns the value of an interpolation; None if it needs what is there only when the run has begun.

    Raises:
        KeyInConfigError: If it leads to a secret of the environment.
    """
    try:
        return node[key]
    except OmegaConfBaseException as error:
        # Each interpolation on the way wraps the error of the next one.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyInConfigError):
                raise _refused(place, "it leads to a key or a password of the environment") from None
            cause = cause.__cause__ or cause.__context__
        return None
    except (ValueError, KeyError):  # Hydra's own resolvers, of a config that is not yet in use
        return None


def _values_of(config: DictConfig | ListConfig, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields the resolved values below a config that an interpolation gives."""
    try:
        nodes: list[tuple[str, Any]] = [(place, OmegaConf.to_container(config, resolve=True))]
    except (OmegaConfBaseException, ValueError, KeyError, RecursionError):
        return
    while nodes:
        below, node = nodes.pop()
        match node:
            case dict():
                nodes += [(f"{below}.{key}", inside) for key, inside in node.items()]
            case list():
                nodes += [(below, inside) for inside in node]
            case _:
                yield below, node, None


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
    plain = isinstance(value, str) and not text.startswith("${")
    if _names_a_key(parts) and (plain or parts[-1] not in _COUNTED):
        raise _refused(place, "it is named like one")
    if _FORMATS.search(text):
        raise _refused(place, "it has the form of one")
    if _ADDRESS.search(text) or _has_key_in_query(text):
        raise _refused(place, "it is an address with a user, a password or a key in it")
    for secret, name in secrets.items():
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


def _refused(place: str, reason: str) -> KeyInConfigError:
    return KeyInConfigError(
        f"{place}: this looks like a key or a password ({reason}), and a run's config is written down. Put it into the "
        "environment: a server's into the variable that llm.api_key_env names, Hugging Face's into HF_TOKEN, "
        "Weights & Biases' into WANDB_API_KEY"
    )


def _parts(name: str) -> list[str]:
    """Returns the words of a name: `apiKey`, `api_key` and `X-Api-Key` end with `key`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def _names_a_key(parts: Sequence[str]) -> bool:
    if not parts or not (parts[-1] in _WORDS or parts[-1].endswith(_ENDINGS)):
        return False
    return not (parts[-1] == "token" and parts[:-1] and parts[-2] in _OF_MODELS)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
