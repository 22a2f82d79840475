"""Builds the method that a config describes, with its rules."""

from omegaconf import DictConfig

from lgclip.encoder.base import Encoder
from lgclip.encoder.paired import PairedEncoder
from lgclip.encoder.scales import Scales
from lgclip.methods.base import Classifier, classifier
from lgclip.methods.paired import Paired, SingleEncoder
from lgclip.runtime.instantiate import build

_GROUPS = ("prototype", "selection", "calibration", "align", "transduction")


def method_from_config(cfg: DictConfig, encoder: Encoder, scales: Scales) -> Classifier:
    """Returns the method of a run.

    Args:
        cfg: The composed config.
        encoder: The run's encoder; of a pair, both are baselines by themselves.
        scales: Views of an image.

    Raises:
        ValueError: If a value is out of range, or the method evaluates nothing.
    """
    # Runtime objects do not go through OmegaConf, which would turn dataclasses into dicts.
    rules = {group: build(cfg[group], _convert_="all") for group in _GROUPS if cfg.get(group)}
    if isinstance(encoder, PairedEncoder):
        rule = rules["prototype"]
        width = encoder.first.width()
        rules["prototype"] = Paired(rule, width, cfg.encoder_weights)
        rules["image_baselines"] = {
            "first_encoder": SingleEncoder(rule, width),
            "second_encoder": SingleEncoder(rule, width, is_second=True),
        }
    return classifier(cfg.method)(**rules, scales=scales, has_text=encoder.has_text)
