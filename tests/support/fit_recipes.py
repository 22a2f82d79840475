"""Trains each recipe of the small models for three steps with 1, 2 and 3 processes.

python tests/support/fit_recipes.py OUT    weights and what was logged to OUT/PROCESSES/RECIPE.safetensors
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from multiprocess_runs import run_in_ranks
from safetensors.torch import save_file
from torch import Tensor

from lgclip.stages.runner import quiet
from lgclip.store.checkpoints import SafetensorsIO
from lgclip.tiny.autoencoder import TinyAutoencoder
from lgclip.tiny.captioner import TinyCaptioner
from lgclip.tiny.corpus import Corpus
from lgclip.tiny.denoiser import TinyDenoiser
from lgclip.tiny.encoder import TinyEncoder
from lgclip.tiny.language import TinyLanguageModel
from lgclip.tiny.recipe import Recipe

SCHEDULE: dict[str, Any] = {"steps": 3, "batch_size": 8, "lr": 1e-3, "warmup": 1}


class Counted(SafetensorsIO):
    """Records each process that writes a checkpoint."""

    def __init__(self, word: Path) -> None:
        super().__init__()
        self.word = word

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        self.word.touch()
        super().save_checkpoint(checkpoint, path, storage_options)


def recipes(build: Path) -> dict[str, Recipe]:
    """Returns the recipes at their smallest, with their first weights."""
    corpus = Corpus(210, 0, build)
    vae = build / "vae"
    torch.manual_seed(0)
    autoencoder = TinyAutoencoder(corpus, channels=(8, 8, 16), latent_channels=4, **SCHEDULE)
    autoencoder.save(vae)
    return {
        "tiny_autoencoder": autoencoder,
        "tiny_denoiser": TinyDenoiser(corpus, autoencoder=vae, channels=(16, 32), text_layers=1, **SCHEDULE),
        "tiny_encoder": TinyEncoder(corpus, width=32, layers=1, text_layers=1, **SCHEDULE),
        "tiny_language": TinyLanguageModel(corpus, width=16, layers=1, **SCHEDULE),
        "tiny_captioner": TinyCaptioner(corpus, stem=8, width=16, blocks=1, layers=1, **SCHEDULE),
    }


def plain_steps(recipe: Recipe) -> torch.optim.Optimizer:
    """Replaces the optimizer by plain gradient descent.

    AdamW divides each gradient by its own size, so one that is 0 but for rounding would make a step of full length
    in a direction of chance, which differs between any two ways to sum.
    """
    return torch.optim.SGD([p for p in recipe.parameters() if p.requires_grad], lr=0.1)


def fit(recipe: Recipe, devices: int, word: Path) -> dict[str, Tensor]:
    """Returns the weights after three steps and the logged values."""
    quiet()
    recipe.configure_optimizers = lambda: plain_steps(recipe)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False,
        max_steps=recipe.steps, max_epochs=-1, gradient_clip_val=1.0, callbacks=[EMAWeightAveraging(decay=0.5)],
        plugins=[Counted(word)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(recipe)
    trainer.save_checkpoint(word.parent / "checkpoint.safetensors")
    weights = {name: p.detach().clone().contiguous() for name, p in recipe.named_parameters() if p.requires_grad}
    logged = {f"logged {name}": value.float() for name, value in trainer.callback_metrics.items()}
    return weights | logged


def fit_all(built: dict[str, Recipe], out: Path, devices: int) -> None:
    """Runs in each process."""
    for name, recipe in built.items():
        result = fit(recipe, devices, out / f"wrote-{os.environ['LOCAL_RANK']}")
        if recipe.global_rank == 0:
            save_file(result, out / f"{name}.safetensors")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    built = recipes(out / "build")
    for devices in (1, 2, 3):
        run_in_ranks(devices, out / str(devices), partial(fit_all, built, out / str(devices), devices))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
