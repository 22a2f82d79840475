"""Selects the values of a config that a classifier was built with, so that further classes are built alike."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.stages.parts import encoder_config

GROUPS = ("llm", "diffuser", "encoder", "scales", "prototype", "selection", "calibration", "method", "text")
"""Config groups that a classifier depends on."""
VALUES = (
    "prompts_per_class", "images_per_prompt", "prompt_order_seed", "prompt_pool", "seed", "noise", "precision",
    "encoder_weights",
)  # fmt: skip
"""Other values that it depends on."""


def settings_of(cfg: DictConfig, encoder: Encoder, text: Mapping[str, object]) -> dict[str, Any]:
    """Returns the settings of a classifier as plain values: no path of a store, no logger, no device.

    Args:
        cfg: The composed config.
        encoder: The encoder with its device-dependent settings resolved.
        text: Config values of the text side with the templates of the data set, see `TextSide.for_added_classes`.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: plain[key] for key in (*GROUPS, *VALUES) if key in plain}
    settings["encoder"] = _with_precision(OmegaConf.to_container(encoder_config(cfg), resolve=True), encoder)
    if text:
        settings["text"] = {**settings["text"], **text}
    dataset = plain.get("dataset") or {}
    settings["dataset"] = {name: dataset[name] for name in ("context", "templates") if dataset.get(name)}
    return settings


def _with_precision(config: Any, encoder: Encoder) -> dict[str, Any]:
    """Returns the config of an encoder, of a pair both, with the precision as it was resolved."""
    # `auto` is bf16 on some hardware and fp32 elsewhere, and the features of the two are not the same.
    if not encoder.parts():
        return {**config, "precision": encoder.precision}
    return {**config, **{name: _with_precision(config[name], part) for name, part in encoder.parts().items()}}


def origin_of(cfg: DictConfig, synthetic_images: SyntheticImages | None) -> dict[str, object]:
    """Returns what a classifier was built from, for its card.

    Args:
        cfg: The composed config.
        synthetic_images: The images; None if the method uses none.
    """
    origin: dict[str, object] = {"method": cfg.method.name}
    if synthetic_images is not None:
        origin["synthetic images"] = len(synthetic_images.ids)
        origin["seed"] = cfg.seed
    return origin


def config_from(settings: Mapping[str, Any], base: DictConfig) -> DictConfig:
    """Returns the config to build further classes with.

    Args:
        settings: From `settings_of`.
        base: The composed default config with `dataset=names`, whose store, devices and logger are used.
    """
    plain: Any = OmegaConf.to_container(base, resolve=False)
    chosen = {key: settings[key] for key in (*GROUPS, *VALUES) if key in settings}
    dataset = {**plain["dataset"], **settings.get("dataset", {})}
    cfg = OmegaConf.create({**plain, **chosen, "dataset": dataset})
    assert isinstance(cfg, DictConfig)
    return cfg
