"""Turns a finished run into a classifier of any images."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lgclip.classifier.files import load_classifier, rule_of, save_classifier, selection_of
from lgclip.classifier.model import ImageClassifier, names_of
from lgclip.methods.calibration import Choice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.reporting.restore import config_of, restore_run
from lgclip.reporting.run_folder import RESULT, Run, RunError


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
        raise RunError(f"{folder}: method={run.result.method} is a trained model; only prototypes can be saved so far")
    restored = restore_run(run)
    classes = len(restored.dataset.class_names)
    text = None
    if "text" in restored.streams:
        stream = restored.streams["text"]
        text = SupportSet(stream.features()[:, 0], torch.tensor(stream.labels), classes).means(renormalize=True)
    support = None
    if restored.synthetic_images is not None and described["text_weight"] < 1:
        synthetic = restored.streams["synthetic"]
        fused = torch.cat([restored.scales.fuse(batch.features) for batch in synthetic.batches()])
        support = SupportSet(fused, torch.tensor(synthetic.labels), classes, restored.full_image)
    choice = Choice(
        rule_of(described["prototype"]), selection_of(described["selection"]), float(described["text_weight"])
    )
    confidence = run.result.confidence
    temperature = Temperature(float(confidence.temperature), confidence.fitted_on)
    names = names_of(restored.dataset.class_names)
    return ImageClassifier(names, restored.encoder, restored.scales, choice, support, text, temperature)


def load(folder: str | Path) -> ImageClassifier:
    """Loads a classifier from its folder, or from the folder of a finished run.

    Raises:
        ValueError: If the folder holds neither, or something is damaged or gone.
    """
    path = Path(folder).expanduser()
    if (path / RESULT).is_file():
        return classifier_of(path)
    return load_classifier(path)


def save_run_classifier(folder: Path, out: Path) -> str:
    """Saves the classifier of a run; returns a line on what was written.

    Raises:
        ValueError: As in `classifier_of`.
    """
    run = Run.read(folder)
    classifier = classifier_of(folder)
    cfg: Any = config_of(run)
    configs = {group: OmegaConf.to_container(cfg[group], resolve=True) for group in ("encoder", "scales")}
    result = run.result
    origin = {
        "prompts": (result.llm or {}).get("id") or (result.llm or {}).get("choice"),
        "images": (result.diffuser or {}).get("id") or (result.diffuser or {}).get("choice"),
        "images per class": result.prompts_per_class * result.images_per_prompt,
        "encoder": (result.encoder or {}).get("id"),
        "method": result.method,
        "top-1 on its own test images": f"{100 * result.metrics.top1:.1f}% of {result.n} ({result.dataset.name})",
    }
    save_classifier(classifier, out, configs, {name: value for name, value in origin.items() if value})
    return f"{out}: {len(classifier.class_names)} classes; lgclip classify {out} PHOTOS -o labels.csv"
