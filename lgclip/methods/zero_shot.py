"""Classifies by the nearest prototype (images, text or both), or by a trained predictor with these as baselines."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.encoder.scales import Scales, full_image_place
from lgclip.methods.base import Classifier, PredictionCollector
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Choice, LeaveOneOut, fit_choice
from lgclip.methods.feature_collector import FeatureCollector
from lgclip.methods.left_out import References
from lgclip.methods.predictor import PrototypePredictor
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import ScoringRule
from lgclip.methods.selection import Selection
from lgclip.types import Role


class ZeroShot(Classifier):
    """Implements LGCLIP (text weight 0), CLIP's text baseline (1), and fusion between them.

    The cosine is linear in the prototype, so `w * text + (1 - w) * image` prototypes are score
    fusion (arXiv:2512.17160, sec. 3; arXiv:2103.00020, sec. 3.1).

    Args:
        name: Name in the result.
        text_weight: Weight of the text prototype, 0 to 1; None if a trained predictor gives the logits.
        baselines: Text weights of baselines, by name, evaluated in the same pass; those that need missing
            text or images are left out.
        trained: Recipe of the predictor that gives the logits; its training runs before, see `training.task`.
        prototype: Scoring rule that computes the score of a class from its images.
        selection: Selects the images that represent a class.
        calibration: Selects the free parameters on synthetic images; None leaves them unchanged.
        scales: Fuses the views of an image.
        has_text: Whether there is a text stream.

    Raises:
        ValueError: If a weight is out of range or needs a missing text tower, or the method has neither a
            text weight nor a predictor.
    """

    def __init__(
        self,
        name: str,
        text_weight: float | None = None,
        baselines: Mapping[str, float] | None = None,
        trained: object = None,
        *,
        prototype: ScoringRule,
        selection: Selection,
        calibration: LeaveOneOut | None = None,
        scales: Scales,
        has_text: bool,
    ) -> None:
        if trained is not None and text_weight is not None:
            raise ValueError(f"method.text_weight={text_weight}: {name} scores by what it trains; set it to null")
        if text_weight is None and not trained:
            raise ValueError(
                f"method={name} needs a recipe: student=tiny, small_set, release, probe or finetune; a method that "
                "trains nothing needs method.text_weight"
            )
        weights: dict[str, float] = {}
        if text_weight is not None:
            weights[name] = text_weight  # first, since the first name is the method itself
        weights |= baselines or {}
        for key, weight in weights.items():
            if not 0 <= weight <= 1:
                raise ValueError(f"text weight of {key} is {weight}: it must be in [0, 1]")
        if (text_weight or 0) > 0 and not has_text:
            raise ValueError(f"method {name} needs a text tower, which this encoder does not have; use method=lgclip")
        if text_weight != 1 and selection.needs_text and selection.keep is not None and not has_text:
            raise ValueError("selection=text needs a text tower, which this encoder lacks; use selection=medoid")
        # Baselines that lack their inputs are left out without an error: the config lists them for every encoder.
        if text_weight == 1:  # then no image was generated
            weights = {key: weight for key, weight in weights.items() if weight == 1}
        if not has_text:
            weights = {key: weight for key, weight in weights.items() if weight == 0}
        names = list(weights)
        if trained:
            names.insert(0, name)
        super().__init__(names, trained)
        self.configured = {key: Choice(prototype, selection, weight) for key, weight in weights.items()}
        self.calibration = calibration
        self.scales = scales
        self.has_text = has_text
        self.needs_images = text_weight != 1
        self._prototypes: dict[str, PrototypePredictor] = {}
        self._text_streams: dict[str, str] = {}
        # Only where the selection compares the full image with the class's sentence, and fusion hides it.
        compares = any(choice.selects_by_text for choice in self.configured.values())
        self._full_place = full_image_place(scales) if compares else None

    @property
    def compares_text(self) -> bool:
        """Returns whether the text baseline is evaluated, next to which others can stand."""
        return any(choice.text_weight == 1 for choice in self.configured.values())

    def add_text_baselines(self, streams: Sequence[str]) -> None:
        """Adds a text baseline for each further stream of sentences, if the method has the text baseline itself.

        Args:
            streams: Names of the streams; that of `text_llm` is the baseline `clip_text_llm`.
        """
        text = next((choice for choice in self.configured.values() if choice.text_weight == 1), None)
        if text is None:
            return
        for stream in streams:
            name = f"clip_{stream}"
            self.configured[name] = text
            self._text_streams[name] = stream
            self.names.append(name)
            self.collectors.append(PredictionCollector())
            self.temperatures[name] = DEFAULT_TEMPERATURE

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.text = FeatureCollector(data.num_classes, data.width)
        self.image = FeatureCollector(data.num_classes, data.width)
        self.full_image = FeatureCollector(data.num_classes, data.width)
        self.other_texts = torch.nn.ModuleDict()
        for stream in data.streams:
            if stream.role is Role.OTHER_TEXT:
                self.other_texts[stream.name] = FeatureCollector(data.num_classes, data.width)
        self._prototypes = {}  # of another data set, if one was evaluated before

    def _fit(self) -> None:
        """Fits the prototypes of every text weight, once all sentences and synthetic images are collected."""
        texts = self._fit_texts()
        text = texts.get("text")
        images: SupportSet | None = None
        if self.needs_images:
            images = self.image.support()
            if self._full_place is not None:
                images = images._replace(full_image=self.full_image.support().features)
        for name, choice in self.configured.items():
            stream = self._text_streams.get(name, "text")
            of_row = texts.get(stream)
            fitted = fit_choice(choice, self.calibration, References(images, of_row))
            used = fitted.choice
            described = {**used.described(), "leave_one_out": fitted.leave_one_out}
            if stream != "text":
                described["text"] = stream
            predictor = PrototypePredictor(used.fit(images, of_row), self.scales, described, fitted.temperature)
            self._prototypes[name] = predictor
            self.describe(name, predictor)
            # Diagnostics use the images of the method itself, not of its baselines.
            if images is not None and name == next(iter(self.configured)):
                self.support = used.selection.select(images, text)

    def _fit_texts(self) -> dict[str, Tensor]:
        """Returns the text prototypes, by the stream of their sentences."""
        if not self.has_text:
            return {}
        prototypes: dict[str, Tensor] = {}
        for stream in self.trainer.datamodule.streams:  # pyright: ignore[reportAttributeAccessIssue]
            if stream.role not in (Role.TEXT, Role.OTHER_TEXT):
                continue
            collector = self.text if stream.role is Role.TEXT else self.other_texts[stream.name]
            assert isinstance(collector, FeatureCollector)
            # The mean at unit length is CLIP's prompt ensemble (arXiv:2103.00020, sec. 3.1.4).
            prototypes[stream.name] = collector.support().means(renormalize=not stream.averages_scores)
        return prototypes

    def test_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        stream = self.trainer.datamodule.streams[dataloader_idx]  # pyright: ignore[reportAttributeAccessIssue]
        match stream.role:
            case Role.TEXT:
                self.text.update(batch.features[:, 0], batch.labels, batch.indices)
            case Role.OTHER_TEXT:
                collector = self.other_texts[stream.name]
                assert isinstance(collector, FeatureCollector)
                collector.update(batch.features[:, 0], batch.labels, batch.indices)
            case Role.SYNTHETIC:
                self.image.update(self.scales.fuse(batch.features), batch.labels, batch.indices)
                if self._full_place is not None:
                    self.full_image.update(batch.features[:, self._full_place], batch.labels, batch.indices)
            case Role.PREDICTED:
                assert self.predictor is not None
                self.collect(self.names[0], self.predictor.logits(batch), batch)
            case Role.EVALUATED:
                # Not in a hook between the streams, which Lightning does not have: the first real image is the first
                # moment when all sentences and synthetic images are collected. Collecting them synchronizes the
                # devices, and each of them has a first batch of real images, so none waits in vain.
                if not self._prototypes:
                    self._fit()
                for name, predictor in self._prototypes.items():
                    self.collect(name, predictor.logits(batch), batch)
            case _:
                raise AssertionError(stream.role)
