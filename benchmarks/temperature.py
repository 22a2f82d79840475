"""Measures the effect of the fitted temperature: `python benchmarks/temperature.py RUN_DIR ...`, for runs with images.

Evaluates each run's stored features again, with its configuration without calibration, once at CLIP's temperature and
once at the fitted one. Prints one row of a table per run.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lgclip.evaluation.confidence import confidence_of
from lgclip.methods.base import PredictionCollector, Predictions
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Choice, Temperature, temperature_of
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run
from lgclip.runtime.instantiate import build


def format_row(folder: Path) -> str:
    """Returns the row of a run."""
    run = Run.read(folder)
    restored = restore_run(run)
    cfg = OmegaConf.create(dict(run.result.config))
    choice = Choice(build(cfg.prototype), build(cfg.selection), cfg.method.text_weight)
    parts = {}
    for name, stream in restored.streams.items():
        features = stream.features()[:, 0] if name == "text" else restored.scales.fuse(stream.features())
        parts[name] = SupportSet(features, torch.tensor(stream.labels), run.result.num_classes)
    text = parts["text"].means(renormalize=True) if "text" in parts else None
    scores = choice.fit(parts["synthetic"], text)(parts["real"].features)
    fitted = temperature_of(choice, References(parts["synthetic"], text))
    labels = parts["real"].labels
    before = _compute_confidence(scores, labels, DEFAULT_TEMPERATURE)
    after = _compute_confidence(scores, labels, fitted)
    cells = [f"{before[name]:.4f} -> {after[name]:.4f}" for name in ("ece", "nll", "brier", "aurc")]
    return " | ".join([folder.name, f"{fitted.value:.4f}, {fitted.fitted_on}", *cells])


def _compute_confidence(scores: torch.Tensor, labels: torch.Tensor, temperature: Temperature) -> dict[str, Any]:
    collector = PredictionCollector()
    collector.update(scores, labels, torch.arange(len(labels)), temperature.value)
    rows, probs = collector.compute()
    return confidence_of(Predictions(*rows.unbind(dim=1), *probs.unbind(dim=1)), temperature)


if __name__ == "__main__":
    print("run | temperature | ece | nll | brier | aurc")
    for name in sys.argv[1:]:
        print(format_row(Path(name)))
