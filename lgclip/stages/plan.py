"""Counts what a run would compute, and which models it would download, without doing either."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lgclip.diffuser.base import SyntheticImages
from lgclip.prompts.text_side import LlmSentences
from lgclip.runtime.hub import HubError, cached, size_of
from lgclip.stages.caption_set import Captions
from lgclip.stages.direct_encoding import DirectEncoding
from lgclip.stages.extract import real_stream, synthetic_stream, text_streams
from lgclip.stages.generate import prompt_script, requested_images
from lgclip.stages.image_stage import image_stage
from lgclip.stages.parts import GenerationParts, RunParts
from lgclip.stages.prompts import PromptGenerationStage
from lgclip.stages.streams import Stream
from lgclip.stages.text import stage_title, stored_run_texts, writing_stage


@dataclass(frozen=True)
class PlannedStage:
    """Counts the items of one stage.

    Attributes:
        stage: Name of the stage.
        unit: Unit of the counts.
        total: Number of items that the run uses.
        stored: Number of those in the store; None where that depends on earlier stages or on a hub out of reach.
    """

    stage: str
    unit: str
    total: int
    stored: int | None


@dataclass(frozen=True)
class PlannedModel:
    """Describes a model that the run loads.

    Attributes:
        group: Config group.
        repository: Repository on the hub.
        is_cached: Whether the hub's cache has it.
        size: Bytes of its weights; None where neither the cache nor the hub can tell.
    """

    group: str
    repository: str
    is_cached: bool
    size: int | None


@dataclass(frozen=True)
class Plan:
    """Holds the stages and models of a run, in order.

    Attributes:
        stages: The stages.
        models: The models from the hub; those of the package are left out.
        notes: Why something is not known, one line each.
    """

    stages: Sequence[PlannedStage]
    models: Sequence[PlannedModel]
    notes: Sequence[str] = ()


def plan_generation(parts: GenerationParts, store: Path) -> Plan:
    """Returns the plan of generate.py: prompts and images.

    Args:
        parts: The parts of the run.
        store: Folder of the store.

    Raises:
        ValueError: If the parts do not fit together, as a run itself would report.
    """
    stages, _, notes = _generation(parts, store)
    return Plan(stages, _models(parts, "llm", "diffuser"), notes)


def plan_run(
    parts: RunParts,
    store: Path,
    *,
    needs_images: bool,
    compares_text: bool = False,
    encoding: DirectEncoding | None = None,
) -> Plan:
    """Returns the plan of evaluate.py: prompts, images and features.

    Args:
        parts: The parts of the run.
        store: Folder of the store.
        needs_images: Whether the method uses synthetic images.
        compares_text: Whether further text baselines are evaluated.
        encoding: Encoder and views of images that are not stored; None if they are stored.

    Raises:
        ValueError: If the parts do not fit together, as a run itself would report.
    """
    stages: list[PlannedStage] = []
    images = None
    notes: list[str] = []
    if needs_images:
        stages, images, notes = _generation(parts, store, encoding)
    groups = ["llm", "diffuser", "encoder"] if needs_images else ["encoder"]
    has_prompts = needs_images and parts.diffuser.needs_prompts
    if parts.encoder.has_text:
        parts.text.check(parts.data.evaluated, parts.llm)
        writing = writing_stage(parts.text, parts, store)
        if writing is not None and not (has_prompts and isinstance(parts.text, LlmSentences)):
            stages.append(_planned_texts(stage_title(parts.text), writing))
            groups = list(dict.fromkeys(["llm", *groups]))
    features, feature_notes = _features(
        parts, store, images, needs_images=needs_images, has_prompts=has_prompts, compares_text=compares_text
    )
    return Plan([*stages, *features], _models(parts, *groups), [*notes, *feature_notes])


def _generation(
    parts: GenerationParts, store: Path, encoding: DirectEncoding | None = None
) -> tuple[list[PlannedStage], SyntheticImages | None, list[str]]:
    """Returns the stages of the generation, the synthetic images if all are stored, and notes."""
    counts = parts.counts
    classes = parts.data.evaluated.target_classes
    total = len(classes) * counts.prompts_per_class * counts.images_per_prompt
    stages: list[PlannedStage] = []
    try:
        script = prompt_script(store, parts.data, parts.llm, parts.diffuser, counts)
        lacking = 0
        if parts.diffuser.needs_prompts:
            if isinstance(script, Captions):
                lacking = len(script.missing())
                stages.append(PlannedStage("prompts", "caption", len(script.images), len(script.images) - lacking))
            else:
                prompts = len(classes) * script.count
                lacking = sum(script.lacking())
                stages.append(PlannedStage("prompts", "prompt", prompts, prompts - lacking))
        if lacking:
            # An image is stored by its prompt: without the prompts nobody knows which images are there.
            return [*stages, PlannedStage("images", "image", total, None)], None, []
        requested = requested_images(parts.diffuser, script, counts)
        stage = image_stage(parts.diffuser, store, classes, requested, counts.seed, encoding)
        missing = stage.missing()
        stages.append(PlannedStage("images", "image", len(requested), len(requested) - len(missing)))
        return stages, None if missing else stage.synthetic_images(), []
    except HubError as error:
        # The keys of prompts and images hold the commit of their model, which only the hub knows.
        if parts.diffuser.needs_prompts and not stages:
            stages.append(PlannedStage("prompts", "prompt", len(classes) * counts.written_prompts, None))
        return [*stages, PlannedStage("images", "image", total, None)], None, [str(error)]


def _features(
    parts: RunParts,
    store: Path,
    images: SyntheticImages | None,
    *,
    needs_images: bool,
    has_prompts: bool,
    compares_text: bool,
) -> tuple[list[PlannedStage], list[str]]:
    """Returns the feature extraction, one entry per stream, and notes."""
    dataset = parts.data.evaluated
    encoder = parts.encoder
    counts = parts.counts
    synthetic = len(dataset.class_names) * counts.prompts_per_class * counts.images_per_prompt
    stages: list[PlannedStage] = []
    try:
        if encoder.has_text:
            stages += _planned_sentences(parts, store, has_prompts=has_prompts, compares_text=compares_text)
        if images is not None:
            stages.append(_planned(synthetic_stream(images, encoder, parts.scales, store), "synthetic image"))
        elif needs_images:
            stages.append(PlannedStage("features", "synthetic image", synthetic, None))
        stages.append(_planned(real_stream(dataset, encoder, parts.scales, store), "real image"))
    except HubError as error:
        unknown = [PlannedStage("features", "real image", len(dataset), None)]
        if needs_images:
            unknown.insert(0, PlannedStage("features", "synthetic image", synthetic, None))
        if encoder.has_text:
            sentences = len(dataset.class_names) * len(dataset.templates)
            unknown.insert(0, PlannedStage("features", "sentence", sentences, None))
        return unknown, [str(error)]
    return stages, []


def _planned_texts(title: str, stage: PromptGenerationStage) -> PlannedStage:
    """Returns the texts that a language model writes for the text side alone."""
    total = len(stage.target_classes) * stage.count
    try:
        return PlannedStage(title, "text", total, total - sum(stage.lacking()))
    except HubError:
        return PlannedStage(title, "text", total, None)


def _planned_sentences(
    parts: RunParts, store: Path, *, has_prompts: bool, compares_text: bool
) -> Iterator[PlannedStage]:
    """Yields the sentences of all text sides; those that a language model still has to write are not known."""
    stage = writing_stage(parts.text, parts, store)
    if stage is not None and stage.missing():
        yield PlannedStage("features", "sentence", len(stage.target_classes) * stage.count, None)
        return
    dataset = parts.data.evaluated
    averages_prompts = compares_text and has_prompts and "llm" in parts.text.alternatives
    unwritten = averages_prompts and not _are_written(parts, store)
    texts = stored_run_texts(parts, store, has_prompts=has_prompts and not unwritten, compares=compares_text)
    streams = text_streams(dataset, parts.encoder, store, texts)
    total = len({item for stream in streams for item in stream.ids})
    missing = sum(len(stream.missing()) for stream in streams)
    yield PlannedStage("features", "sentence", total, total - missing)
    if unwritten:
        count = len(dataset.class_names) * parts.counts.prompts_per_class
        yield PlannedStage("features", "prompt as a sentence", count, None)


def _are_written(parts: RunParts, store: Path) -> bool:
    """Returns whether the prompts of the run are in the store, as far as that can be known."""
    if parts.llm.needs_images:
        return True  # captions are no sentences of a class
    stage = writing_stage(LlmSentences(), parts, store)
    assert stage is not None
    try:
        return not stage.missing()
    except HubError:
        return False


def _planned(stream: Stream, unit: str) -> PlannedStage:
    # A sentence that two classes share is stored once.
    total = len(set(stream.ids))
    missing = {stream.ids[place] for place in stream.missing()}
    return PlannedStage("features", unit, total, total - len(missing))


def _models(parts: GenerationParts, *groups: str) -> list[PlannedModel]:
    models = []
    for group in groups:
        if group == "llm" and not parts.diffuser.needs_prompts:
            continue
        for repository, revision in getattr(parts, group).repositories():
            is_cached = cached(repository, revision)
            models.append(PlannedModel(group, repository, is_cached, size_of(repository, revision)))
    return models
