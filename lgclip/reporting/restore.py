"""Restores a finished run's data set, synthetic images and features from its config and its store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lgclip.datasets.base import Dataset
from lgclip.datasets.splits import DatasetSplits
from lgclip.datasets.subsets import First, classes_in
from lgclip.datasets.unreadable import ReadableSubset
from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import FULL_IMAGE, Scales
from lgclip.reporting.run_folder import Run, RunError
from lgclip.runtime.config_aliases import SECOND_ENCODER
from lgclip.runtime.instantiate import TargetError, build
from lgclip.runtime.secrets import guard_environment
from lgclip.stages.caption_set import Captions
from lgclip.stages.direct_encoding import direct_encoding
from lgclip.stages.extract import pool_stream, real_stream, student_stream, synthetic_stream, text_streams
from lgclip.stages.generate import prompt_script, requested_images, with_sources
from lgclip.stages.image_stage import image_stage
from lgclip.stages.parts import RunParts
from lgclip.stages.pool import unlabeled_pool
from lgclip.stages.streams import Stream
from lgclip.stages.text import RunTexts, stored_run_texts, writing_stage
from lgclip.store.remote import fetch
from lgclip.store.root import open_root
from lgclip.training.prompt_tuning.encoder import LearnedPrompts
from lgclip.training.student.encoder import StudentEncoder


@dataclass(frozen=True)
class RestoredRun:
    """Holds the inputs of a run.

    Attributes:
        dataset: The images that were evaluated.
        data: The data set with its other splits.
        synthetic_images: The synthetic images; None if the method used none.
        encoder: The encoder of the run.
        scales: Views of an image.
        captions: Captions of the real training images; None if the prompts were not captions.
        full_image: Unit features of the full synthetic images, where the run's selection compared them; else None.
        streams: `text`, further text baselines such as `text_llm`, `synthetic` and `real`, as far as the run had them,
            with their stored features.
        texts: The text sides; None without a text tower.
        text_keys: Keys of the stored prompts or descriptors that the sentences are made from.
    """

    dataset: Dataset
    data: DatasetSplits
    synthetic_images: SyntheticImages | None
    encoder: Encoder
    scales: Scales
    captions: Captions | None
    streams: Mapping[str, Stream]
    full_image: Float[Tensor, "m d"] | None = None
    texts: RunTexts | None = None
    text_keys: Sequence[str] = ()


def restore_run(run: Run) -> RestoredRun:
    """Restores the inputs of a run; computes nothing.

    Raises:
        ValueError: If something does not exist any more, such as the data set's images.
    """
    cfg = config_of(run)
    root = open_root(cfg.paths.store)
    try:
        parts = RunParts.from_config(cfg)
    except (InstantiationException, TargetError) as error:
        # Hydra's own message names a class; the reason, such as a missing folder, is its cause.
        reason = error
        if not isinstance(error, TargetError):
            reason = error.__cause__ or error
        raise RunError(f"{run.folder} cannot be restored: {reason}") from error
    encoder = parts.encoder
    scales = parts.scales
    dataset = _as_evaluated(parts.data.evaluated, run)
    # In the order of a run: text, synthetic, real.
    streams: list[Stream] = []
    texts = None
    text_keys: Sequence[str] = ()
    if encoder.has_text:
        writing = writing_stage(parts.text, parts, root)
        text_keys = writing.keys() if writing else ()
        texts = _texts_of(parts, run, root)
        streams += text_streams(dataset, encoder, root, texts)
    synthetic_images = None
    captions = None
    if run.result.diffuser:
        script = prompt_script(root, parts.data, parts.llm, parts.diffuser, parts.counts)
        captions = script if isinstance(script, Captions) else None
        # The keys of the images follow from the config; the images are only looked up in the store, never generated.
        requested = requested_images(parts.diffuser, script, parts.counts)
        encoding = direct_encoding(cfg.paths.get("images", "files"), encoder, scales)
        stage = image_stage(parts.diffuser, root, dataset.target_classes, requested, cfg.seed, encoding)
        synthetic_images = stage.synthetic_images()
        synthetic_images = with_sources(synthetic_images, script, cfg.images_per_prompt)
        streams.append(synthetic_stream(synthetic_images, encoder, scales, root))
    streams.append(real_stream(dataset, encoder, scales, root))
    by_name = {stream.name: stream for stream in streams}
    full_image = None
    compares = any(method.get("selects_by_text") for method in run.result.predictor.values())
    if synthetic_images is not None and compares and tuple(scales.views) != (FULL_IMAGE,):
        full_image = by_name["synthetic"].store.take(synthetic_images.ids, [FULL_IMAGE])[:, 0]
    return RestoredRun(
        dataset=dataset,
        data=parts.data,
        synthetic_images=synthetic_images,
        encoder=encoder,
        scales=scales,
        captions=captions,
        streams=by_name,
        full_image=full_image,
        texts=texts,
        text_keys=text_keys,
    )


def _texts_of(parts: RunParts, run: Run, root: Path) -> RunTexts:
    """Returns the text sides that a run evaluated."""
    compared = {described.get("text") for described in run.result.predictor.values()}
    texts = stored_run_texts(parts, root, has_prompts="text_llm" in compared)
    alternatives = {name: class_texts for name, class_texts in texts.alternatives.items() if name in compared}
    return RunTexts(texts.configured, alternatives)


def additional_streams(run: Run, restored: RestoredRun) -> list[Stream]:
    """Returns the streams of a run beyond those of its data set: of shifted sets, and a student's outputs.

    Args:
        run: The run.
        restored: Its inputs.

    Raises:
        ValueError: If something does not exist any more.
    """
    cfg = config_of(run)
    root = open_root(cfg.paths.store)
    streams = []
    shifted = [build(config, _convert_="all") for config in (cfg.get("ood") or {}).values()]
    for name, dataset in zip(cfg.get("ood") or {}, shifted, strict=True):
        # Text features of their own: a shifted set may have fewer classes or other names.
        if restored.encoder.has_text:
            classes = classes_in(restored.data.evaluated, dataset, str(name))
            streams += text_streams(dataset, restored.encoder, root, restored.texts, classes)
        streams.append(real_stream(dataset, restored.encoder, restored.scales, root))
    if (align := cfg.get("align")) and (pool := unlabeled_pool(build(align), restored.data)) is not None:
        streams.append(pool_stream(pool, restored.encoder, restored.scales, root))
    if student_record := run.result.student:
        folder = cfg.checkpoint or fetch(root / "students" / str(student_record.key))
        student = StudentEncoder(str(folder), precision=student_record.precision)
        answered = [restored.dataset, *shifted]
        # The attack on membership asks the student about its training images too.
        if run.result.membership:
            answered.append(First(restored.data.training, cfg.prompts_per_class))
        streams += [student_stream(dataset, student, root) for dataset in answered]
    if prompt_tuning := run.result.prompt_tuning:
        learned_prompts = LearnedPrompts(str(cfg.checkpoint or fetch(root / "prompts_learned" / prompt_tuning.key)))
        # The pool's features belong to the training; with `checkpoint` that was another run.
        if not cfg.checkpoint:
            streams.append(real_stream(restored.data.unlabeled_pool, restored.encoder, restored.scales, root))
        if "visual" in learned_prompts.kinds:
            # Tuned prompts of the image tower change the features of the images, so these have a store of their own.
            prompted = learned_prompts.encoder(restored.encoder)
            streams += [student_stream(dataset, prompted, root) for dataset in (restored.dataset, *shifted)]
    return streams


def _as_evaluated(dataset: Dataset, run: Run) -> Dataset:
    """Returns the data set without the images that the run excluded, whether or not they are readable now.

    Raises:
        RunError: If its number of images has changed since the evaluation.
    """
    skipped = run.result.skipped
    n = run.result.n
    # With as many images as were evaluated, the unreadable files have been moved away since.
    if not skipped or len(dataset) == n:
        return dataset
    if len(dataset) != run.result.images_in_dataset:
        raise RunError(
            f"{run.folder}: it evaluated {n} of {run.result.images_in_dataset} images, the data set now has "
            f"{len(dataset)}; run it again"
        )
    return ReadableSubset(dataset, {image.index: image.reason for image in skipped})


def config_of(run: Run) -> DictConfig:
    """Returns the run's config, with `auto` and a hub's `main` as they were resolved in the run."""
    guard_environment()  # the config was resolved when it was recorded; what still looks so is someone else's
    cfg: Any = OmegaConf.create(dict(run.result.config))
    # To look at an old run must not start a download of gigabytes.
    if "download" in cfg.dataset:
        cfg.dataset.download = False
    for group, recorded in _recorded_parts(run):
        # `precision=auto` depends on the hardware, and the precision is part of the features' key.
        if "precision" in recorded:
            cfg[group].precision = recorded["precision"]
        # A hub model is given as id@commit, a folder by its hash.
        name, _, commit = str(recorded.get("model", "")).partition("@")
        if commit and "revision" in cfg[group] and name == recorded.get("id"):
            cfg[group].revision = commit
    return cfg


def _recorded_parts(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the config groups of models, with what the result records of them."""
    for group in ("encoder", "diffuser", "llm"):
        recorded = getattr(run.result, group) or {}
        if "second" in recorded:
            yield group, recorded["first"]
            yield SECOND_ENCODER, recorded["second"]
        else:
            yield group, recorded
