"""Turns a finished run into a classifier of any images."""

from pathlib import Path
from typing import Any

from lgclip.classifier.build import classifier_from_features, needs_text
from lgclip.classifier.files import rule_of, selection_of
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.settings import settings_of
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.reporting.restore import config_of, restore_run
from lgclip.reporting.run_folder import Run, RunError
from lgclip.runtime.instantiate import build


def classifier_of(folder: Path) -> ImageClassifier:
    """Returns the classifier of a finished run: the same scores as in its evaluation.

    Args:
        folder: The run's folder.

    Raises:
        RunError: If the run's method trained a model: a student or tuned prompts.
        ValueError: If something of the run does not exist any more.
    """
    run = Run.read(folder)
    described = run.result.predictor[run.result.method]
    if "prototype" not in described:
        raise RunError(
            f"{folder}: method={run.result.method} is a trained model; only prototypes make a classifier so far. Use "
            "the model by checkpoint=FOLDER"
        )
    restored = restore_run(run)
    cfg: Any = config_of(run)
    weight = float(described["text_weight"])
    used = Choice(rule_of(described["prototype"]), selection_of(described["selection"]), weight)
    accuracy = described.get("leave_one_out")
    confidence = run.result.confidence
    temperature = Temperature(float(confidence.temperature), confidence.fitted_on)
    configured = Choice(
        build(cfg.prototype, _convert_="all"), build(cfg.selection, _convert_="all"), float(cfg.method.text_weight)
    )
    streams = dict(restored.streams)
    if not needs_text(configured):
        streams.pop("text", None)
    result = run.result
    origin = {
        "method": result.method,
        "synthetic images": len(restored.synthetic_images.ids) if restored.synthetic_images else None,
        "seed": cfg.seed,
        "top-1 on its own test images": f"{100 * result.metrics.top1:.1f}% of {result.n} ({result.dataset.name})",
    }
    return classifier_from_features(
        restored.dataset,
        restored.encoder,
        restored.scales,
        configured,
        build(cfg.calibration, _convert_="all") if cfg.get("calibration") else None,
        streams=streams,
        synthetic_images=restored.synthetic_images,
        fitted=FittedChoice(used, None if accuracy is None else float(accuracy), temperature),
        settings=settings_of(cfg, restored.encoder),
        origin={name: value for name, value in origin.items() if value is not None},
        full_image=restored.full_image,
    )
