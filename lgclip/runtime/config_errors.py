"""Describes errors of Hydra and OmegaConf in a line: what is wrong with which key, and how to fix it."""

import difflib
import re
from collections.abc import Sequence

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

_QUOTES = (
    "A value with letters beyond a-z, or with one of ,=:{}[]()' in it, needs quotes of its own inside those of the "
    """shell: "paths.store='/data/my störe'\""""
)


def describe_config_error(error: HydraException | OmegaConfBaseException) -> str:
    """Describes what is wrong with a config or a command line, and how to fix it."""
    text = str(error)
    if missing := _missing_choice(error):
        return missing
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: add {error.full_key}=... to the command"
    if isinstance(error, OverrideParseException):
        return f"{text}\n{_QUOTES}"
    if described := _with_key_first(error):
        return described
    return text + _reason(error)


def _reason(error: HydraException | OmegaConfBaseException) -> str:
    """Returns what the cause of an override's error knows and Hydra does not say."""
    text = str(error)
    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException):
        return ""
    # Hydra says that the key is not in the config, but not which keys are; its cause knows the node.
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and cause.parent_node is not None:
        *path, key = unknown.group(1).split(".")
        known = [str(k) for k in cause.parent_node.keys()]  # noqa: SIM118
        return did_you_mean(key, known, ".".join(path))
    if text.startswith("Error merging override"):
        return f": {str(cause).partition(chr(10))[0]}"
    return ""


def _with_key_first(error: HydraException | OmegaConfBaseException) -> str | None:
    """Describes an error of several lines in one, with its key first; None if it states no key."""
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).partition(chr(10))[0]}"
    reason, _, key = str(error).rpartition("full_key: ")
    if not isinstance(error, InstantiationException) or not key:
        return None
    return f"{key.strip()}: {' '.join(reason.split())}"


def _missing_choice(error: HydraException | OmegaConfBaseException) -> str | None:
    """Describes a choice that a config group does not have; None for any other error."""
    if not isinstance(error, MissingConfigException) or not error.missing_cfg_file:
        return None
    group, _, choice = error.missing_cfg_file.rpartition("/")
    if not group or not error.options:
        return None
    return f"no {group}={choice}: choose {', '.join(error.options)}" + did_you_mean(choice, error.options)


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Returns a second line for an error that names the most similar known key; empty if none is similar."""
    # 0.5 instead of difflib's 0.6, as keys are long and users type a part of them: `promts` for `prompts_per_class`.
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not similar:
        return ""
    key = f"{prefix}.{similar[0]}" if prefix else similar[0]
    return f"\nDid you mean '{key}'?"
