"""Selects the values of a config that a classifier was built with, so that further classes are built alike."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.methods.rejection import Rejection
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
    """Returns the origin of a classifier, for its card.

    Args:
        cfg: The composed config.
        synthetic_images: The images; None if the method uses none.
    """
    origin: dict[str, object] = {"method": cfg.method.name}
    if synthetic_images is not None:
        origin["synthetic images"] = len(synthetic_images.ids)
        origin["seed"] = cfg.seed
    return origin


def check_negatives(rejection: Rejection | None, text: Mapping[str, Any], *, uses_text: bool) -> None:
    """Checks that similar objects, which a classifier rejects, have sentences.

    Args:
        rejection: Which images are rejected; None if no image is.
        text: Config values of the text side.
        uses_text: Whether the classifier uses sentences.

    Raises:
        ValueError: If the sentences come from a file, and the similar things from a chat model.
    """
    comes_from_file = bool(text.get("file") or text.get("stored"))
    if rejection is None or not uses_text or not comes_from_file or not rejection.similar_names:
        return
    if rejection.names is None:
        raise ValueError(
            f"rejection.similar_names={rejection.similar_names}: text.file has no descriptors of the things that are "
            "named; set rejection=positives, or name things of text.file by rejection.names=FILE"
        )


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
