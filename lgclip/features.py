"""What is encoded, for a run: sentences, drawn images and images to judge, each to stored unit features."""

from dataclasses import replace
from pathlib import Path

from lgclip.damage import Findings, OnBadImage, Readable, refusal
from lgclip.data import TEXT_VIEW, Stream, Streams
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.encoder.base import Encoder
from lgclip.encoding import Encoding, SharedViews
from lgclip.feature_store import FeatureStore
from lgclip.identity import key_of
from lgclip.scales import Scales, SquareCrops
from lgclip.stages import Stages

WHOLE_IMAGE = SquareCrops()
"""What a student sees of an image."""


def text_stream(dataset: Dataset, encoder: Encoder, root: Path) -> Stream:
    """The sentences of the text baseline: every template with every class name."""
    pairs = [
        (label, template.replace("{}", name))
        for label, name in enumerate(dataset.class_names)
        for template in dataset.templates
    ]
    return Stream(
        name="text",
        ids=[key_of({"sentence": sentence}) for _, sentence in pairs],
        labels=[label for label, _ in pairs],
        views=TEXT_VIEW,
        store=FeatureStore(root, encoder.inputs(), {"source": "sentences"}),
        load=lambda at: pairs[at][1],
        where=lambda at: f"class {pairs[at][0]}, the sentence {pairs[at][1]!r}",
    )


def synthetic_stream(drawing: Pictures, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """The drawn images."""

    def where(at: int) -> str:
        label, text, _ = drawing.prompts[at]
        name = next(subject.name for subject in drawing.subjects if subject.class_index == label)
        return f"class {label} ({name!r}), the image drawn from {text!r}"

    return Stream(
        name="synthetic",
        ids=drawing.ids,
        labels=[prompt.class_index for prompt in drawing.prompts],
        views=scales.views,
        store=FeatureStore(root, encoder.inputs(), {"source": "synthetic", "images": drawing.key}),
        load=drawing.image,
        where=where,
    )


def real_stream(dataset: Dataset, encoder: Encoder, scales: Scales, root: Path) -> Stream:
    """The images to judge."""
    names = dataset.class_names
    return Stream(
        name="real",
        ids=dataset.ids,
        labels=dataset.labels,
        views=scales.views,
        store=FeatureStore(root, encoder.inputs(), dataset.source()),
        load=dataset.image,
        findings=Findings(root, dataset.source()),
        where=lambda at: f"{dataset.where(at)}, class {dataset.labels[at]} ({names[dataset.labels[at]]!r})",
    )


def student_stream(dataset: Dataset, student: Encoder, root: Path) -> Stream:
    """Some images as a student answers to them."""
    return replace(real_stream(dataset, student, WHOLE_IMAGE, root), name="student")


def encode(
    stages: Stages,
    dataset: Dataset,
    encoder: Encoder,
    scales: Scales,
    root: Path,
    on_bad_image: OnBadImage = OnBadImage.RAISE,
    *,
    drawing: Pictures | None,
    workers: int,
    student: Encoder | None = None,
    title: str = "features",
) -> tuple[Streams, Dataset]:
    """Everything that is to be judged, and what it is judged by, to features.

    Args:
        stages: Runs the stage.
        dataset: The images to judge.
        encoder: Who encodes.
        scales: Views of an image.
        root: The store's folder.
        on_bad_image: What to do about images to judge that cannot be read; all others are encoded first.
        drawing: The synthetic images; None if the method needs none.
        workers: Processes that decode images.
        student: Whose logits are wanted of the images to judge; None for no student.
        title: Name of the stage.

    Returns:
        The streams, and the images that are judged: those of `dataset` that can be read.

    Raises:
        ValueError: If images cannot be read and each must be, or not one image of a class can.
    """
    streams = [text_stream(dataset, encoder, root)] if encoder.has_text else []
    if drawing is not None:
        streams.append(synthetic_stream(drawing, encoder, scales, root))
    streams.append(real := real_stream(dataset, encoder, scales, root))
    before = len(real.unread())
    data = Streams(streams, len(dataset.class_names), SharedViews(encoder, scales), encoder.batch_size, workers)
    stages.complete(title, Encoding(encoder, data), sum(len(s.ids) for s in streams), data)
    unread = real.unread()
    if unread:
        if on_bad_image is OnBadImage.RAISE:
            raise ValueError(refusal(dataset, unread))
        account = stages.accounts[-1]  # it counted what was tried
        made, reused = account.made - (len(unread) - before), account.reused - before
        stages.accounts[-1] = replace(account, made=made, reused=reused)
        dataset = Readable(dataset, unread)
        data.streams[-1] = real_stream(dataset, encoder, scales, root)
    if student is not None:
        data.streams.insert(-1, answered(stages, dataset, student, root, workers, title.replace("features", "student")))
    return data, dataset


def answered(
    stages: Stages, dataset: Dataset, student: Encoder, root: Path, workers: int, title: str = "student"
) -> Stream:
    """The logits that a student gives some images, as unit vectors (see `logits`); made where they are missing.

    Args:
        stages: Runs the stage.
        dataset: The images.
        student: Who answers.
        root: The store's folder.
        workers: Processes that decode images.
        title: Name of the stage.
    """
    stream = student_stream(dataset, student, root)
    data = Streams([stream], len(dataset.class_names), SharedViews(student, WHOLE_IMAGE), student.batch_size, workers)
    stages.complete(title, Encoding(student, data), len(stream.ids), data)
    if unread := stream.unread():
        raise ValueError(refusal(dataset, unread))
    return stream
