"""Classifies by the nearest prototype (images, text or both), or by a trained predictor with these as baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from lgclip.batches import FeatureBatch
from lgclip.encoder.scales import Scales, full_image_place
from lgclip.methods.alignment import Alignment, FittedAlignment
from lgclip.methods.base import Classifier, PredictionCollector
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Choice, LeaveOneOut, fit_choice
from lgclip.methods.evaluated_pool import INDUCTIVE, REFINED, EvaluatedPool, start_temperature
from lgclip.methods.feature_collector import FeatureCollector
from lgclip.methods.left_out import References
from lgclip.methods.predictor import Predictor, PrototypePredictor
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import ScoringRule
from lgclip.methods.selection import Selection
from lgclip.methods.transduction.base import Transduction
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
        align: Aligns real images with synthetic ones; None compares them as they are.
        transduction: Refines the method's scores by all evaluated images together; the scores themselves are then the
            baseline `inductive`. None classifies each image by itself.
        image_baselines: Scoring rules of further baselines that use images alone, by name.
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
        align: Alignment | None = None,
        transduction: Transduction | None = None,
        image_baselines: Mapping[str, ScoringRule] | None = None,
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
        choices = {key: Choice(prototype, selection, weight) for key, weight in weights.items()}
        if text_weight != 1:
            choices |= {key: Choice(rule, selection, 0.0) for key, rule in (image_baselines or {}).items()}
        names = list(choices)
        if trained:
            names.insert(0, name)
        if transduction is not None:
            names.insert(1, INDUCTIVE)
        super().__init__(names, trained)
        self.configured = choices
        self.calibration = calibration
        self.align = align
        self.transduction = transduction
        self.alignment: FittedAlignment | None = None
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
        self.pool = FeatureCollector(1, data.width)
        self.evaluated = EvaluatedPool(data.num_classes, data.width)
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
        if self.align is not None:
            unlabeled = None if self.align.pool is None else self.pool.support().features
            self.alignment = self.align.fit(unlabeled, References(images, text))
        for name, choice in self.configured.items():
            # Text alone is compared without the images, so that it is the same whether or not there are any.
            support = None if choice.text_weight == 1 else images
            stream = self._text_streams.get(name, "text")
            compared = References(support, texts.get(stream))
            if self.alignment is not None:
                compared = self.alignment.references(compared)
            fitted = fit_choice(choice, self.calibration, compared)
            used = fitted.choice
            described = {**used.described(), "leave_one_out": fitted.leave_one_out}
            if stream != "text":
                described["text"] = stream
            align = None
            if self.alignment is not None:
                described["alignment"] = self.alignment.described()
                align = partial(self.alignment.real, support=support)
            predictor = PrototypePredictor(
                used.fit(compared.support, compared.text),
                self.scales,
                described,
                fitted.temperature,
                align=align,
                prototypes=used.prototypes(compared.support, compared.text),
            )
            self._prototypes[name] = predictor
            self.describe(name, predictor)
            # Diagnostics use the images of the method itself, not of its baselines.
            if images is not None and name == next(iter(self.configured)):
                mask = used.selection.mask(compared.support or images, compared.text)
                self.support = images.take(mask)

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
            case Role.UNLABELED:
                self.pool.update(self.scales.fuse(batch.features), batch.labels, batch.indices)
            case Role.PREDICTED:
                assert self.predictor is not None
                self._collect(self.names[0], self.predictor.logits(batch), batch)
            case Role.EVALUATED:
                # Not in a hook between the streams, which Lightning does not have: the first real image is the first
                # moment when all sentences and synthetic images are collected. Collecting them synchronizes the
                # devices, and each of them has a first batch of real images, so none waits in vain.
                if not self._prototypes:
                    self._fit()
                for name, predictor in self._prototypes.items():
                    self._collect(name, predictor.logits(batch), batch)
                if self.transduction is not None:
                    predictor = self._prototypes.get(self.names[0])
                    features = self.scales.fuse(batch.features) if predictor is None else predictor.features(batch)
                    self.evaluated.add_features(features, batch)
            case _:
                raise AssertionError(stream.role)

    @property
    def prototype_predictors(self) -> Mapping[str, PrototypePredictor]:
        """Returns the predictor of each name by prototypes in the last test."""
        return self._prototypes

    def describe(self, name: str, predictor: Predictor) -> None:
        super().describe(name, predictor)
        if self.transduction is None or name != self.names[0]:
            return
        super().describe(INDUCTIVE, predictor)
        start = start_temperature(predictor.temperature)
        described = {"part": self.transduction.key_name, **asdict(self.transduction)}  # pyright: ignore[reportArgumentType]
        described["assumes_balanced"] = self.transduction.assumes_balanced
        self.choices[name] = {**self.choices[name], "transduction": {**described, "start_temperature": start._asdict()}}
        self.temperatures[name] = REFINED

    def _collect(self, name: str, scores: Tensor, batch: FeatureBatch) -> None:
        """Adds one batch of scores under a name; those that are refined later become the inductive baseline."""
        if self.transduction is not None and name == self.names[0]:
            self.evaluated.add_scores(scores, batch)
            name = INDUCTIVE
        self.collect(name, scores, batch)

    def on_test_epoch_end(self) -> None:
        if self.transduction is not None:
            predictor = self._prototypes.get(self.names[0])
            prototypes = None if predictor is None else predictor.prototypes
            temperature = start_temperature(self.temperatures[INDUCTIVE]).value
            ids = self.trainer.datamodule.streams[-1].ids  # pyright: ignore[reportAttributeAccessIssue]
            logits, labels = self.evaluated.refine(self.transduction, ids, temperature, prototypes)
            # Each device has refined all images, and adds the predictions of its share.
            places = torch.arange(self.trainer.global_rank, len(ids), self.trainer.world_size, device=labels.device)
            self.collect(self.names[0], logits[places], FeatureBatch(logits[places], labels[places], places))
        super().on_test_epoch_end()
