"""Turns a finished run into a classifier of any images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgclip.classifier.build import classifier_from_features, needs_text
from lgclip.classifier.loading import rule_of, selection_of
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo, names_of
from lgclip.classifier.places import MODEL, PACKED
from lgclip.classifier.settings import settings_of
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.methods.alignment import ALIGNMENT, FittedAlignment, read_alignment
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.left_out import References
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First
from lgclip.reporting.restore import RestoredRun, config_of, restore_run
from lgclip.reporting.run_folder import Run, RunError
from lgclip.runtime.instantiate import build
from lgclip.stages.extract import FULL_IMAGE_VIEW, text_prototypes
from lgclip.store.remote import fetch
from lgclip.store.root import open_root
from lgclip.training.prompt_tuning.encoder import FILES, LearnedPrompts
from lgclip.training.student.encoder import ABOUT, WEIGHTS, StudentEncoder

VISUAL = FILES["visual"]


def classifier_of(folder: Path) -> ImageClassifier:
    """Returns the classifier of a finished run: the same scores as in its evaluation.

    Args:
        folder: The run's folder.

    Raises:
        RunError: If the run's predictor is of another kind than prototypes, a student or tuned prompts.
        ValueError: If something of the run does not exist any more.
    """
    run = Run.read(folder)
    described = run.result.predictor[run.result.method]
    restored = restore_run(run)
    cfg: Any = config_of(run)
    match described.get("learned"):
        case "student":
            return _of_student(run, restored, cfg)
        case "prompt":
            return _of_learned_prompts(run, restored, cfg)
        case None:
            return _of_prototypes(run, restored, cfg)
        case other:
            raise RunError(
                f"{folder}: a classifier of the predictor {other!r} is not known; use it by checkpoint=FOLDER"
            )


def _of_prototypes(run: Run, restored: RestoredRun, cfg: Any) -> ImageClassifier:
    described = run.result.predictor[run.result.method]
    weight = float(described["text_weight"])
    used = Choice(rule_of(described["prototype"]), selection_of(described["selection"]), weight)
    accuracy = described.get("leave_one_out")
    confidence = run.result.confidence
    temperature = Temperature(float(confidence.temperature), confidence.fitted_on)
    # A classifier sees one image at a time: it has the scores that the rule of the run started from.
    if transduction := described.get("transduction"):
        temperature = Temperature(**transduction["start_temperature"])
    configured = Choice(
        build(cfg.prototype, _convert_="all"), build(cfg.selection, _convert_="all"), float(cfg.method.text_weight)
    )
    streams = dict(restored.streams)
    if not needs_text(configured):
        streams.pop("text", None)
    return classifier_from_features(
        restored.dataset,
        restored.encoder,
        restored.scales,
        configured,
        build(cfg.calibration, _convert_="all") if cfg.get("calibration") else None,
        streams=streams,
        synthetic_images=restored.synthetic_images,
        fitted=FittedChoice(used, None if accuracy is None else float(accuracy), temperature),
        settings=settings_of(cfg, restored.encoder, _text_values(restored)),
        origin=_origin(run, restored),
        full_image=restored.full_image,
        align=_stored_alignment(run) if described.get("alignment") else None,
    )


def _stored_alignment(run: Run) -> Callable[[References], FittedAlignment]:
    fitted = read_alignment(run.folder / ALIGNMENT)
    return lambda references: fitted


def _of_student(run: Run, restored: RestoredRun, cfg: Any) -> ImageClassifier:
    """Returns the classifier of a student, which computes the logits itself."""
    record = run.result.student
    assert record is not None
    stored = open_root(cfg.paths.store) / "students" / str(record.key)
    folder = Path(str(cfg.checkpoint or fetch(stored))).expanduser()
    student = StudentEncoder(str(folder), precision=record.precision)
    encoder = {
        "_target_": "lgclip.training.student.encoder.StudentEncoder",
        "folder": f"{PACKED}student",
        "precision": record.precision,
    }
    files = {f"{MODEL}/student/{name}": folder / name for name in (ABOUT, WEIGHTS)}
    return _trained(run, restored, cfg, student, encoder, scales=FULL_IMAGE_VIEW, files=files, temperature=1.0)


def _of_learned_prompts(run: Run, restored: RestoredRun, cfg: Any) -> ImageClassifier:
    """Returns the classifier of tuned prompts: their class features, and the encoder with its visual prompt."""
    record = run.result.prompt_tuning
    assert record is not None
    folder = cfg.checkpoint or fetch(open_root(cfg.paths.store) / "prompts_learned" / record.key)
    prompts = LearnedPrompts(str(folder))
    names = restored.dataset.class_names
    text = prompts.class_features(restored.encoder, names, torch.device("cpu"))
    if text is None:
        text = text_prototypes(restored.streams["text"], len(names))
    config = settings_of(cfg, restored.encoder, {})["encoder"]
    files: dict[str, Path] = {}
    if "visual" in prompts.kinds:
        config = {
            "_target_": "lgclip.training.prompt_tuning.encoder.PromptedEncoder",
            "base": config,
            "file": f"{PACKED}{VISUAL}",
        }
        files[f"{MODEL}/{VISUAL}"] = prompts.file("visual")
    encoder = prompts.encoder(restored.encoder)
    temperature = float(prompts.about["temperature"])
    return _trained(
        run, restored, cfg, encoder, config, scales=restored.scales, files=files, temperature=temperature, text=text
    )


def _trained(
    run: Run,
    restored: RestoredRun,
    cfg: Any,
    encoder: Encoder,
    encoder_config: Mapping[str, Any],
    *,
    scales: Scales,
    files: Mapping[str, Path],
    temperature: float,
    text: Tensor | None = None,
) -> ImageClassifier:
    """Returns the classifier of a trained model: by its class features, or by its own logits without any."""
    choice = Choice(Mean(), First(), 1.0)
    settings = {**settings_of(cfg, restored.encoder, _text_values(restored)), "encoder": dict(encoder_config)}
    if text is None:
        settings["scales"] = {"_target_": "lgclip.encoder.scales.SquareCrops"}
    return ImageClassifier(
        classes=tuple(ClassInfo(name) for name in names_of(restored.dataset.class_names)),
        encoder=encoder,
        scales=scales,
        configured=choice,
        calibration=None,
        support=None,
        text=text,
        fitted=FittedChoice(choice, None, Temperature(temperature, "training")),
        settings=settings,
        origin={"trained": run.result.method, **_origin(run, restored)},
        gives_logits=text is None,
        files=files,
    )


def _text_values(restored: RestoredRun) -> dict[str, object]:
    """Returns config values with which added classes get sentences as the run's classes had them."""
    if restored.texts is None:
        return {}
    return restored.texts.configured.side.for_added_classes(restored.dataset)


def _origin(run: Run, restored: RestoredRun) -> dict[str, Any]:
    """Returns the origin of a run's classifier, for its card."""
    result = run.result
    origin: dict[str, Any] = {"method": result.method}
    if restored.synthetic_images is not None:
        origin["synthetic images"] = len(restored.synthetic_images.ids)
    origin["seed"] = result.config["seed"]
    accuracy = f"{100 * result.metrics.top1:.1f}% of {result.n} ({result.dataset.name})"
    return {**origin, "top-1 on its own test images": accuracy}
