"""A finished run's data set, drawn images and features, brought back from its config and its store."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from lgclip.allowed import TargetError, build
from lgclip.captions import Captions
from lgclip.damage import Readable
from lgclip.data import Stream
from lgclip.datasets.base import Dataset
from lgclip.datasets.selected import First
from lgclip.diffuser.base import Pictures
from lgclip.encoder.base import Encoder
from lgclip.encoder.prompted import Learnt
from lgclip.encoder.student import StudentEncoder
from lgclip.features import real_stream, student_stream, synthetic_stream, text_stream
from lgclip.generation import Script, opened, traced, wanted_images
from lgclip.prompts.captioner import ImageWriter
from lgclip.runs import Run, RunError
from lgclip.scales import Scales
from lgclip.store import PromptStore, open_root
from lgclip.writing import Writing


@dataclass(frozen=True)
class Reopened:
    """What a run worked with.

    Attributes:
        dataset: The images that were judged.
        drawing: The synthetic images; None if the method used none.
        encoder: What encoded them.
        scales: Views of an image.
        captions: What was said of the real training images; None if the prompts were no captions.
        streams: `text`, `synthetic` and `real`, as far as the run had them, with their stored features.
    """

    dataset: Dataset
    drawing: Pictures | None
    encoder: Encoder
    scales: Scales
    captions: Captions | None
    streams: Mapping[str, Stream]


def reopen(run: Run) -> Reopened:
    """Brings back what a run worked with; makes nothing.

    Raises:
        ValueError: If something is not there any more, such as the data set's images.
    """
    cfg = _config_of(run)
    root = open_root(cfg.paths.store)
    groups = ("dataset", "llm", "diffuser", "encoder", "scales")
    try:
        dataset, writer, diffuser, encoder, scales = (build(cfg[group], _convert_="all") for group in groups)
    except (InstantiationException, TargetError) as error:
        why = error if isinstance(error, TargetError) else error.__cause__ or error
        raise RunError(f"{run.folder} cannot be brought back: {why}") from error
    dataset = _as_judged(dataset, run)
    streams = [text_stream(dataset, encoder, root)] if encoder.has_text else []
    drawing, captions = None, None
    if run.result["diffuser"]:
        pool = cfg.prompts_per_class if cfg.prompt_order_seed is None else cfg.prompt_pool
        if isinstance(writer, ImageWriter) and diffuser.needs_prompts:
            values = dataset.training_values()
            real = opened(writer, lambda: build(cfg.dataset, **values, _convert_="all"), dataset.subjects)
            script: Script = (captions := Captions(real, writer, root, pool))
        else:
            script = Writing(writer, PromptStore(root), dataset.subjects, pool, cfg.seed)
        counts = (cfg.prompts_per_class, cfg.images_per_prompt, cfg.prompt_order_seed)
        wanted = wanted_images(diffuser, script, *counts)
        drawing = diffuser.stage(root, dataset.subjects, wanted, cfg.seed).pictures()
        drawing = traced(drawing, script, cfg.images_per_prompt)
        streams.append(synthetic_stream(drawing, encoder, scales, root))
    streams.append(real_stream(dataset, encoder, scales, root))
    return Reopened(dataset, drawing, encoder, scales, captions, {stream.name: stream for stream in streams})


def beside(run: Run, opened: Reopened) -> list[Stream]:
    """The streams of a run beyond those of its data set: of shifted sets, and what a student answered.

    Args:
        run: The run.
        opened: What it worked with.

    Raises:
        ValueError: If something is not there any more.
    """
    cfg = _config_of(run)
    root, streams = open_root(cfg.paths.store), []
    shifted = [build(one, _convert_="all") for one in (cfg.get("ood") or {}).values()]
    for one in shifted:
        streams += [text_stream(one, opened.encoder, root)] if opened.encoder.has_text else []
        streams.append(real_stream(one, opened.encoder, opened.scales, root))
    if told := run.result.get("student"):
        folder = cfg.ckpt or root / "students" / told["key"]
        student = StudentEncoder(str(folder), precision=told["precision"])
        asked = [opened.dataset, *shifted]
        if run.result["membership"]:
            training = build(cfg.dataset, **opened.dataset.training_values(), _convert_="all")
            asked.append(First(training, cfg.prompts_per_class))
        streams += [student_stream(one, student, root) for one in asked]
    if told := run.result.get("learner"):
        learnt = Learnt(str(cfg.ckpt or root / "prompts_learned" / told["key"]))
        if not cfg.ckpt:  # else they were learnt by another run
            pool = build(cfg.dataset, **opened.dataset.pool_values(), _convert_="all")
            streams.append(real_stream(pool, opened.encoder, opened.scales, root))
        if "visual" in learnt.kinds:
            seen = learnt.encoder(opened.encoder)
            streams += [student_stream(one, seen, root) for one in (opened.dataset, *shifted)]
    return streams


def _as_judged(dataset: Dataset, run: Run) -> Dataset:
    """The data set without the images that the run left out, whatever has become of them since.

    Raises:
        RunError: If it holds another number of images than when it was judged.
    """
    skipped, n = run.result.get("skipped", ()), run.result["n"]
    if not skipped or len(dataset) == n:  # what could not be read has been moved away
        return dataset
    if len(dataset) != run.result["images_in_dataset"]:
        raise RunError(
            f"{run.folder}: it judged {n} of {run.result['images_in_dataset']} images, the data set now has "
            f"{len(dataset)}; run it again"
        )
    return Readable(dataset, {one["index"]: one["reason"] for one in skipped})


def _config_of(run: Run) -> DictConfig:
    """The run's config, with what `auto` and a hub's `main` stood for where and when it ran."""
    cfg: Any = OmegaConf.create(run.result["config"])
    if "download" in cfg.dataset:
        cfg.dataset.download = False
    for group in ("encoder", "diffuser", "llm"):
        made = run.result[group] or {}
        if "precision" in made:
            cfg[group].precision = made["precision"]
        # A hub model is told as id@commit, a folder by its hash.
        name, _, commit = str(made.get("model", "")).partition("@")
        if commit and "revision" in cfg[group] and name == made.get("id"):
            cfg[group].revision = commit
    return cfg
