"""Builds a classifier from a config: generates what is missing, encodes it, and fits the rules to it."""

from dataclasses import replace
from functools import partial
from typing import TypeGuard

from omegaconf import DictConfig

from lgclip.classifier.build import classifier_from_features, needs_text
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.settings import origin_of, settings_of
from lgclip.datasets.splits import DatasetSplits
from lgclip.methods.base import Classifier
from lgclip.methods.from_config import method_from_config
from lgclip.methods.zero_shot import ZeroShot
from lgclip.stages.context import RunContext
from lgclip.stages.direct_encoding import direct_encoding
from lgclip.stages.extract import encode_references
from lgclip.stages.generate import generate_images
from lgclip.stages.parts import RunParts
from lgclip.stages.pool import pool_features
from lgclip.stages.references import References, stored_references
from lgclip.stages.text import RunTexts, complete_texts
from lgclip.store.root import open_root


def classifier_from_config(cfg: DictConfig, data: DatasetSplits) -> ImageClassifier:
    """Builds the classifier of a config; generates whatever is missing, and evaluates nothing.

    Args:
        cfg: The composed config.
        data: The classes.

    Raises:
        ValueError: If the parts are incompatible, the method trains a model, or a class has no image at all.
    """
    parts = RunParts.from_config(cfg, data)
    method = method_from_config(cfg, parts.encoder, parts.scales)
    if not _compares_prototypes(method):
        raise ValueError(
            f"method={cfg.method.name} trains a model; a classifier is built from prototypes: use method=lgclip, "
            "fusion or clip_text"
        )
    if method.transduction is not None:
        raise ValueError(
            f"transduction={method.transduction.key_name} classifies the images of a test together, a classifier "
            "sees one at a time: set transduction=none"
        )
    dataset = parts.data.evaluated
    configured = next(iter(method.configured.values()))
    if needs_text(configured):
        parts.text.check(dataset, parts.llm)
    context = RunContext.from_config(cfg)
    parts = replace(parts, encoder=parts.encoder.on(context.device))
    parts.encoder.inputs()  # an encoder that cannot be had is an error before anything is generated
    if method.needs_images:
        context.check_models_of(parts)
    context.stages.check_before(parts.encoder.check_weights)
    # The view of the full image, where the selection needs it, is one of the synthetic images alone.
    views = parts.with_selection_view(cfg).scales
    align = method.align
    with context.stages:
        synthetic_images = None
        if method.needs_images:
            encoding = direct_encoding(context.image_format, parts.encoder, views)
            synthetic_images = generate_images(context, parts, encoding)
        unlabeled = pool_features(context, align, data, parts.encoder, parts.scales)
        texts: RunTexts | None = None
        if needs_text(configured):
            texts = complete_texts(context, parts, has_prompts=False, compares=False)
        streams = encode_references(
            context, dataset, parts.encoder, views, synthetic_images=synthetic_images, texts=texts
        )
    classifier = classifier_from_features(
        dataset,
        parts.encoder,
        views,
        configured,
        method.calibration,
        streams=streams,
        synthetic_images=synthetic_images,
        settings=settings_of(cfg, parts.encoder, parts.text.for_added_classes(dataset)),
        origin=origin_of(cfg, synthetic_images),
        align=None if align is None else partial(align.fit, unlabeled),
    )
    classifier.scales = parts.scales
    return classifier


def references_from_config(cfg: DictConfig, data: DatasetSplits) -> References:
    """Returns the entries of the store that the classifier of a config uses; computes nothing.

    Args:
        cfg: The composed config.
        data: The classes.

    Raises:
        ValueError: If the parts cannot be built, or a class has no image in the store.
    """
    store = open_root(cfg.paths.store)
    parts = RunParts.from_config(cfg, data).with_selection_view(cfg)
    method = method_from_config(cfg, parts.encoder, parts.scales)
    if not _compares_prototypes(method):
        raise ValueError(
            f"method={cfg.method.name}: this classifier was trained and not built from prototypes; name the folder of "
            "its run instead"
        )
    configured = next(iter(method.configured.values()))
    return stored_references(parts, store, needs_images=bool(method.needs_images), needs_text=needs_text(configured))


def _compares_prototypes(method: Classifier) -> TypeGuard[ZeroShot]:
    """Returns whether a method compares images with prototypes and trains nothing."""
    return isinstance(method, ZeroShot) and method.trained is None
