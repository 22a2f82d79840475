"""Extracts the features of a run: sentences, synthetic images and images to evaluate, each to stored unit features."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.datasets.base import Dataset
from lgclip.datasets.unreadable import OnBadImage, ReadableSubset, UnreadableImages, refusal
from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales, SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.methods.prototypes import SupportSet
from lgclip.prompts.text_side import Ensemble
from lgclip.stages.context import RunContext
from lgclip.stages.features import FeatureExtractionStage
from lgclip.stages.paired_features import PairedFeatureStore, feature_store
from lgclip.stages.streams import TEXT_VIEW, Stream, Streams
from lgclip.stages.text import ClassTexts, RunTexts
from lgclip.store.keys import content_key
from lgclip.types import Role

log = logging.getLogger(__name__)

FULL_IMAGE_VIEW = SquareCrops()
"""View of an image for a student."""


def text_streams(
    dataset: Dataset,
    encoder: Encoder,
    root: Path,
    texts: RunTexts | None = None,
    classes: Sequence[int] | None = None,
) -> list[Stream]:
    """Returns the streams of sentences: of the configured text side first, then of further text baselines.

    Args:
        dataset: The classes.
        encoder: Encodes the sentences.
        root: The store's folder.
        texts: The text sides; None for the data set's templates alone.
        classes: Index of each class among those of the run; None if they are the same.
    """
    configured = texts.configured if texts else ClassTexts(Ensemble("dataset"))
    streams = [_text_stream("text", configured, dataset, encoder, root, classes)]
    encoded = set(streams[0].ids)
    for name, alternative in (texts.alternatives if texts else {}).items():
        stream = _text_stream(name, alternative, dataset, encoder, root, classes)
        # The sides share sentences: each is encoded once.
        streams.append(replace(stream, role=Role.OTHER_TEXT, encoded_before=frozenset(encoded)))
        encoded.update(stream.ids)
    return streams


def _text_stream(
    name: str, texts: ClassTexts, dataset: Dataset, encoder: Encoder, root: Path, classes: Sequence[int] | None
) -> Stream:
    """Returns the stream of one text side's sentences."""
    pairs: list[tuple[int, str]] = []
    for label, sentences in enumerate(texts.sentences(dataset, classes)):
        pairs.extend((label, sentence) for sentence in sentences)
    return Stream(
        name=name,
        role=Role.TEXT,
        averages_scores=texts.side.averages_scores,
        ids=[sentence_id(sentence) for _, sentence in pairs],
        labels=[label for label, _ in pairs],
        views=TEXT_VIEW,
        store=feature_store(root, encoder, {"source": "sentences"}, is_text=True),
        load=lambda place: pairs[place][1],
        where=lambda place: f"class {pairs[place][0]}, the sentence {pairs[place][1]!r}",
    )


def sentence_id(sentence: str) -> str:
    """Returns the content key of a sentence."""
    # By the sentence alone: two classes of one name, two text sides, or two data sets, share its feature.
    return content_key({"sentence": sentence})


def text_prototypes(stream: Stream, classes: int) -> Float[Tensor, "c d"]:
    """Returns the text prototype of each class: the mean feature of its sentences.

    Args:
        stream: Stream of the sentences, with stored features.
        classes: Number of classes.
    """
    sentences = SupportSet(stream.features()[:, 0], torch.tensor(stream.labels), classes)
    # At unit length it is CLIP's prompt ensemble (arXiv:2103.00020, sec. 3.1.4); as it is, the mean of the scores.
    return sentences.means(renormalize=not stream.averages_scores)


def synthetic_stream(synthetic_images: SyntheticImages, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """Returns the stream of synthetic images."""
    return Stream(
        name="synthetic",
        role=Role.SYNTHETIC,
        ids=synthetic_images.ids,
        labels=[prompt.class_index for prompt in synthetic_images.prompts],
        views=scales.views,
        store=feature_store(root, encoder, {"source": "synthetic", "images": synthetic_images.key}),
        load=synthetic_images.image,
        where=partial(_where_synthetic, synthetic_images),
    )


def _where_synthetic(synthetic_images: SyntheticImages, place: int) -> str:
    prompt = synthetic_images.prompts[place]
    name = prompt.target_class.name
    return f"class {prompt.class_index} ({name!r}), the image generated from {prompt.text!r}"


def real_stream(dataset: Dataset, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """Returns the stream of images to evaluate."""
    names = dataset.class_names
    return Stream(
        name="real",
        ids=dataset.ids,
        labels=dataset.labels,
        views=scales.views,
        store=feature_store(root, encoder, dataset.source()),
        load=dataset.image,
        unreadable=UnreadableImages(root, dataset.source()),
        where=lambda place: f"{dataset.where(place)}, class {dataset.labels[place]} ({names[dataset.labels[place]]!r})",
    )


def pool_stream(pool: Dataset, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """Returns the stream of unlabelled images."""
    return replace(real_stream(pool, encoder, scales, root), name="pool", role=Role.UNLABELED)


def student_stream(dataset: Dataset, student: Encoder, root: Path) -> Stream:
    """Returns the stream of a student's outputs on some images."""
    return replace(real_stream(dataset, student, FULL_IMAGE_VIEW, root), name="student", role=Role.PREDICTED)


def encode(
    context: RunContext,
    dataset: Dataset,
    encoder: Encoder,
    scales: Scales,
    *,
    synthetic_images: SyntheticImages | None,
    title: str = "features",
    texts: RunTexts | None = None,
    classes: Sequence[int] | None = None,
) -> tuple[Streams, Dataset]:
    """Encodes everything that is evaluated, and what it is compared with.

    Args:
        context: Runs the stage, and holds the policy for unreadable images: all others are encoded first.
        dataset: The images to evaluate.
        encoder: Turns images and sentences into features.
        scales: Views of an image.
        synthetic_images: The synthetic images; None if the method needs none.
        title: Name of the stage.
        texts: The text sides; None for the data set's templates alone.
        classes: Index of each class among those of the run; None if they are the same.

    Returns:
        The streams, and the images that are evaluated: the readable ones of `dataset`.

    Raises:
        ValueError: If images are unreadable and the policy does not allow it, or no image of a class is readable.
    """
    root = context.store
    stages = context.stages
    streams: list[Stream] = []
    if encoder.has_text:
        streams += text_streams(dataset, encoder, root, texts, classes)
    if synthetic_images is not None:
        streams.append(synthetic_stream(synthetic_images, encoder, scales, root))
    real = real_stream(dataset, encoder, scales, root)
    # Last: the test expects the images to evaluate at the end of the list, after all that they are compared with.
    streams.append(real)
    views = SharedViews(encoder, scales)
    data = Streams(streams, len(dataset.class_names), views, encoder.batch_size, context.workers)
    _complete_pairs(context, encoder, streams)
    # Images that were known to be unreadable before are neither made nor reused now, so they are counted apart.
    before = len(real.unread())
    stages.complete(title, FeatureExtractionStage(encoder, data), sum(len(stream.ids) for stream in data.streams), data)
    unread = real.unread()
    if unread:
        if context.on_bad_image is OnBadImage.RAISE:
            raise ValueError(refusal(dataset, unread))
        stats = stages.stage_stats[-1]  # it counted what was tried
        computed = stats.computed - (len(unread) - before)
        stages.stage_stats[-1] = replace(stats, computed=computed, reused=stats.reused - before)
        dataset = ReadableSubset(dataset, unread)
        # The old stream still has places for the images that are left out now.
        data.streams[-1] = real_stream(dataset, encoder, scales, root)
    return data, dataset


def _complete_pairs(context: RunContext, encoder: Encoder, streams: Sequence[Stream]) -> None:
    """Writes the features of two encoders that each of them has stored alone."""
    # By one process: the others can join them as well, and need no file.
    if not context.stages.trainer.is_global_zero:
        return
    for stream in streams:
        if isinstance(stream.store, PairedFeatureStore):
            count = stream.store.complete(stream.ids, stream.views, encoder.batch_size)
            if count:
                log.info("%s: %d items are joined from the features of each encoder", stream.name, count)


def encode_references(
    context: RunContext,
    dataset: Dataset,
    encoder: Encoder,
    scales: Scales,
    *,
    synthetic_images: SyntheticImages | None,
    texts: RunTexts | None,
) -> Mapping[str, Stream]:
    """Encodes what images are compared with, for a classifier without images to evaluate.

    Args:
        context: Runs the stage.
        dataset: The classes.
        encoder: Turns images and sentences into features.
        scales: Views of an image.
        synthetic_images: The synthetic images; None if the method needs none.
        texts: The text side; None if the classifier uses no sentences.

    Returns:
        The streams `text` and `synthetic`, as far as they are needed, with their stored features.
    """
    streams: list[Stream] = []
    if texts is not None:
        streams += text_streams(dataset, encoder, context.store, texts)
    if synthetic_images is not None:
        streams.append(synthetic_stream(synthetic_images, encoder, scales, context.store))
    views = SharedViews(encoder, scales)
    data = Streams(streams, len(dataset.class_names), views, encoder.batch_size, context.workers)
    stage = FeatureExtractionStage(encoder, data)
    _complete_pairs(context, encoder, streams)
    context.stages.complete("features", stage, sum(len(stream.ids) for stream in streams), data)
    return {stream.name: stream for stream in streams}


def encode_pool(context: RunContext, pool: Dataset, encoder: Encoder, scales: Scales) -> Stream:
    """Encodes unlabelled images, and returns their stream.

    Args:
        context: Runs the stage, and holds the policy for unreadable images.
        pool: The images.
        encoder: Turns images into features.
        scales: Views of an image.

    Raises:
        ValueError: If images are unreadable and the policy does not allow it.
    """
    stream = pool_stream(pool, encoder, scales, context.store)
    views = SharedViews(encoder, scales)
    data = Streams([stream], 1, views, encoder.batch_size, context.workers)
    _complete_pairs(context, encoder, [stream])
    context.stages.complete("features pool", FeatureExtractionStage(encoder, data), len(stream.ids), data)
    unread = stream.unread()
    if not unread:
        return stream
    if context.on_bad_image is OnBadImage.RAISE:
        raise ValueError(refusal(pool, unread))
    log.warning("%s: %d unlabelled images cannot be read and are left out", pool.name, len(unread))
    return pool_stream(ReadableSubset(pool, unread), encoder, scales, context.store)


def predicted_stream(context: RunContext, dataset: Dataset, model: Encoder, title: str) -> Stream:
    """Returns the outputs of a trained model on some images, as unit vectors (see `logits`); computes missing ones.

    Args:
        context: Runs the stage.
        dataset: The images.
        model: The trained model.
        title: Name of the stage.

    Raises:
        ValueError: If images cannot be read.
    """
    stream = student_stream(dataset, model, context.store)
    views = SharedViews(model, FULL_IMAGE_VIEW)
    data = Streams([stream], len(dataset.class_names), views, model.batch_size, context.workers)
    context.stages.complete(title, FeatureExtractionStage(model, data), len(stream.ids), data)
    # Nothing is left out here: the outputs must be of the same images as everything that they are compared with.
    if unread := stream.unread():
        raise ValueError(refusal(dataset, unread))
    return stream
