"""Computes the key of a run, which decides whether two jobs of a sweep are the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lgclip.runtime import versions

_LATER = {"image_format": "png", "quantization": None}
"""Settings of a diffuser that came later, with the value which earlier runs had without them."""


def run_key(cfg: DictConfig) -> str:
    """Returns 32 hexadecimal digits that identify a run's whole config and the declared versions.

    The source code is not part of it: a change that alters results raises a number in `versions`.

    Args:
        cfg: The run's config.
    """
    declared = {
        "store": versions.STORE_SCHEMA,
        "result": versions.RESULT_SCHEMA,
        "code": versions.CODE_VERSION,
        "reply_parser": versions.REPLY_PARSER,
    }
    text = json.dumps([settings(cfg), declared], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def settings(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the whole config except what decides whether a finished run is repeated, and how fast images load.

    A setting that came later is left out at the value which earlier runs had without it.

    Args:
        cfg: The run's config, or the config stored in a result.json.
    """
    plain: Any = cfg
    if isinstance(cfg, DictConfig):
        plain = OmegaConf.to_container(cfg, resolve=True)
    # A job that is run again on purpose is still the same job, and workers change no result.
    remaining = {key: value for key, value in plain.items() if key not in ("rerun", "workers")}
    diffuser = remaining.get("diffuser")
    if isinstance(diffuser, dict):
        remaining["diffuser"] = {
            key: value for key, value in diffuser.items() if key not in _LATER or value != _LATER[key]
        }
    return remaining
