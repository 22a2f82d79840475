"""What the fitted temperature is worth: `python benchmarks/temperature.py RUN_DIR ...`, runs that used images.

Judges each run's stored features again, by its own configuration without calibration, once at CLIP's temperature
and once at the fitted one. Prints one row of a table a run.
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


def figures(folder: Path) -> str:
    """One row of the table."""
    run = Run.read(folder)
    opened, cfg = restore_run(run), OmegaConf.create(dict(run.result.config))
    choice = Choice(build(cfg.prototype), build(cfg.selection), cfg.method.text_weight)
    parts = {}
    for name, stream in opened.streams.items():
        features = stream.features()[:, 0] if name == "text" else opened.scales.fuse(stream.features())
        parts[name] = SupportSet(features, torch.tensor(stream.labels), run.result.num_classes)
    text = parts["text"].means(renormalize=True) if "text" in parts else None
    scores = choice.fit(parts["synthetic"], text)(parts["real"].features)
    fitted = temperature_of(choice, References(parts["synthetic"], text))
    before, after = (_told(scores, parts["real"].labels, temperature) for temperature in (DEFAULT_TEMPERATURE, fitted))
    shown = [f"{before[name]:.4f} -> {after[name]:.4f}" for name in ("ece", "nll", "brier", "aurc")]
    return " | ".join([folder.name, f"{fitted.value:.4f}, {fitted.fitted_on}", *shown])


def _told(scores: torch.Tensor, labels: torch.Tensor, temperature: Temperature) -> dict[str, Any]:
    collector = PredictionCollector()
    collector.update(scores, labels, torch.arange(len(labels)), temperature.value)
    rows, probs = collector.compute()
    return confidence_of(Predictions(*rows.unbind(dim=1), *probs.unbind(dim=1)), temperature)


if __name__ == "__main__":
    print("run | temperature | ece | nll | brier | aurc")
    for name in sys.argv[1:]:
        print(figures(Path(name)))
