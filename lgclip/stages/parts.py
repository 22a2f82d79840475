"""Builds the parts of a run from its config."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lgclip.datasets.splits import DatasetSplits
from lgclip.diffuser.base import ImageSource
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import FULL_IMAGE, Scales, WithFullImage
from lgclip.prompts.base import PromptGenerator
from lgclip.prompts.text_side import Ensemble, TextSide
from lgclip.runtime.config_aliases import SECOND_ENCODER
from lgclip.runtime.instantiate import build, check
from lgclip.stages.counts import ImageCounts

PAIR = "lgclip.encoder.paired.PairedEncoder"
"""Target of two encoders."""


@dataclass(frozen=True)
class GenerationParts:
    """Holds the parts that generate synthetic images.

    Attributes:
        data: The data set with its splits.
        llm: Generates prompts, or captions training images.
        diffuser: Source of the images.
        counts: Numbers of prompts and images.
    """

    data: DatasetSplits
    llm: PromptGenerator
    diffuser: ImageSource
    counts: ImageCounts

    @classmethod
    def from_config(cls, cfg: DictConfig, data: DatasetSplits | None = None) -> "GenerationParts":
        """Builds the parts that the config groups name.

        Args:
            cfg: The composed config.
            data: The data set, where it is open already.

        Raises:
            ValueError: If a value is out of range.
            TargetError: If the config names a target that is not allowed.
            InstantiationException: If a part cannot be built; its cause says why.
        """
        # Plain numbers first: a mistyped count is an error before any part is built.
        counts = ImageCounts.from_values(cfg)
        # Only how to build the other splits: each is opened when it is first needed.
        data = data or DatasetSplits(partial(build, cfg.dataset, _convert_="all"))
        return cls(data, build(cfg.llm, _convert_="all"), build(cfg.diffuser, _convert_="all"), counts)


def encoder_config(cfg: DictConfig) -> Any:
    """Returns the config of the run's encoder: of the pair where there is a second one."""
    if not cfg.get(SECOND_ENCODER):
        return cfg.encoder
    for group in ("encoder", SECOND_ENCODER):
        check(cfg[group])  # here, where an error can name the group
    # Resolved, since a copy has no `precision` of the run to refer to.
    first, second = (OmegaConf.to_container(cfg[group], resolve=True) for group in ("encoder", SECOND_ENCODER))
    return OmegaConf.create({"_target_": PAIR, "first": first, "second": second})


@dataclass(frozen=True)
class RunParts(GenerationParts):
    """Holds the parts of a run: image generation and feature extraction.

    Attributes:
        encoder: Turns images and sentences into features.
        scales: Views of an image.
        text: Which sentences stand for the classes.
    """

    encoder: Encoder
    scales: Scales
    text: TextSide

    @classmethod
    def from_config(cls, cfg: DictConfig, data: DatasetSplits | None = None) -> "RunParts":
        generation = GenerationParts.from_config(cfg, data)
        encoder = build(encoder_config(cfg), _convert_="all")
        scales = build(cfg.scales, _convert_="all")
        # The fields of the base class by their names, so that a new one needs no line here.
        # A config of an earlier version names none: the data set's templates stood for the classes.
        text = build(cfg.text, _convert_="all") if cfg.get("text") else Ensemble("dataset", alternatives=())
        return cls(**vars(generation), encoder=encoder, scales=scales, text=text)

    def with_selection_view(self, cfg: DictConfig) -> "RunParts":
        """Adds the view of the full image where the selection compares it with the class's sentence."""
        selection = build(cfg.selection)
        compares = selection.needs_text and selection.keep is not None and cfg.method.get("text_weight") != 1
        if not compares or FULL_IMAGE in self.scales.views:
            return self
        return replace(self, scales=WithFullImage(others=self.scales))
