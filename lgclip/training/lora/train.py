"""Tunes LoRA weights on a data set's images, into a folder of the store that `diffuser.lora` reads.

STORE/adapters/KEY/pytorch_lora_weights.safetensors    the weights, in the format of diffusers
STORE/adapters/KEY/lora.json                           their inputs; written last
STORE/adapters/KEY/checkpoints/                        during the tuning, so that the same command resumes
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from lgclip.diffuser.prompt_embeddings import PromptEmbeddings
from lgclip.diffuser.schedulers import replace_scheduler
from lgclip.encoder.precision import decided_for_training
from lgclip.encoder.weight_files import is_intact
from lgclip.stages.context import RunContext
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.checkpoints import SafetensorsIO, last_checkpoint, resumable
from lgclip.store.keys import digest_of
from lgclip.training.loop import PRECISION, StepBar
from lgclip.training.lora.data import TuningPool
from lgclip.training.lora.module import DiffuserLora, Parts
from lgclip.training.lora.task import Adaptation
from lgclip.training.task import FitResult, TrainingTask

WEIGHTS = "pytorch_lora_weights.safetensors"
ABOUT = "lora.json"


def _last_loss(module: DiffuserLora) -> dict[str, float]:
    if not module.history:
        return {}
    return {"loss": module.history[-1]["loss"]}


@dataclass(frozen=True)
class LoraTraining(TrainingTask):
    """Tunes LoRA weights of a diffuser's U-Net on unlabelled images (arXiv:2106.09685).

    Attributes:
        adaptation: The recipe, the pipeline and the images.
    """

    folder_name: ClassVar[str] = "adapters"
    stage: ClassVar[str] = "lora"
    unit: ClassVar[str] = "step"

    adaptation: Adaptation

    @property
    def amount(self) -> int:
        return self.adaptation.tuning.steps

    def inputs(self) -> dict[str, object]:
        return self.adaptation.inputs()

    def is_complete(self, folder: Path) -> bool:
        return (folder / ABOUT).is_file() and is_intact(folder, ABOUT, {"": WEIGHTS})

    def fit(self, context: RunContext, folder: Path) -> FitResult:
        tuning = self.adaptation.tuning
        checkpoints = folder / "checkpoints"
        trainer = context.make_trainer(
            # Steps end the training: the sampler runs through all of them, which Lightning sees as one epoch.
            max_steps=tuning.steps,
            max_epochs=-1,
            precision=PRECISION[decided_for_training(tuning.precision)],
            accumulate_grad_batches=tuning.accumulate,
            gradient_clip_val=tuning.gradient_clip,
            plugins=[SafetensorsIO()],
            callbacks=[last_checkpoint(checkpoints, tuning.checkpoint_every), StepBar("lora", _last_loss)],
            logger=context.logger,
            log_every_n_steps=1,
        )
        # After the trainer, whose device encodes the sentences.
        module = build_lora_module(self.adaptation, trainer.strategy.root_device)
        pool = TuningPool(tuning, self.adaptation.images(), module.size, context.training_workers)
        trainer.fit(module, datamodule=pool, ckpt_path=resumable(checkpoints / "last.safetensors"))
        return FitResult(trainer, module)

    def save(self, folder: Path, outcome: DiffuserLora, cost: Mapping[str, object]) -> None:
        _write(folder, self.adaptation, outcome, dict(cost))

    @classmethod
    def summary(cls, folder: Path) -> str:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        trained = about["trained_on"]
        rows = about["history"]
        first = f"{rows[0]['loss']:.4f}"
        last = f"{rows[-1]['loss']:.4f}"
        return (
            f"{folder}: {about['steps']} steps on {trained['pool']:,} images of {trained['dataset']}, mean loss "
            f"{first} up to step {rows[0]['step']} and {last} in the last ones; draw with diffuser.lora={folder}"
        )


def build_lora_module(adaptation: Adaptation, device: torch.device) -> DiffuserLora:
    """Builds the training module before any step; the text encoders are needed only here, and then released.

    Args:
        adaptation: The pipeline and the images.
        device: Device that encodes the sentences.

    Raises:
        ValueError: If the pipeline cannot be loaded or tuned.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    tuning = adaptation.tuning
    diffuser = adaptation.pipeline
    pipeline = replace(diffuser, precision=decided_for_training(tuning.precision)).pipeline()
    if diffuser.scheduler is not None:
        replace_scheduler(pipeline, diffuser.scheduler, diffuser.scheduler_options)
    scheduler = pipeline.scheduler
    # The training noise is DDPM's, made from the sampler's config. One without betas, or with flow sigmas, would give a
    # DDPM of its defaults, with other noise levels than the U-Net was trained on.
    if "beta_schedule" not in scheduler.config or scheduler.config.get("use_flow_sigmas"):
        raise ValueError(
            f"diffuser.model={diffuser.model}: {type(scheduler).__name__} uses another noise schedule than "
            "method=diffuser_lora does, which needs a scheduler with a beta_schedule; name one by diffuser.scheduler"
        )
    # All sentences at once, before any step: the text encoders then leave memory to the U-Net. They are not tuned.
    words, pooled = _words(pipeline, adaptation.sentences(), device)
    unet = pipeline.unet
    # SDXL's autoencoder overflows in fp16.
    vae = pipeline.vae.float()
    size = diffuser.size or unet.config.sample_size * pipeline.vae_scale_factor
    # The step that it adds to a time counts where images are generated, not where noise is added.
    noising = DDPMScheduler.from_config(scheduler.config)
    return DiffuserLora(Parts(unet, vae, noising, words, pooled, size), tuning)


@torch.no_grad()  # not `inference_mode`, whose tensors no gradient may pass
def _words(pipeline: Any, sentences: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Returns the embeddings of some sentences, and for SDXL the pooled ones; on the CPU."""
    for name in {"text_encoder", "text_encoder_2"} & pipeline.components.keys():
        pipeline.components[name].to(device)
    embeddings = PromptEmbeddings(pipeline, device)(sentences)
    pooled = embeddings.get("pooled_prompt_embeds")
    if pooled is not None:
        pooled = pooled.cpu()
    return embeddings["prompt_embeds"].cpu(), pooled


def _write(folder: Path, adaptation: Adaptation, module: DiffuserLora, spent: dict[str, object]) -> None:
    """Writes the weights, and their metadata last."""
    tuning = adaptation.tuning
    diffuser = adaptation.pipeline
    # diffusers reads rank and alpha from here. Without it alpha defaults to the rank, and another one would be lost.
    adapter = {"unet.r": tuning.rank, "unet.lora_alpha": tuning.strength, "unet.target_modules": list(tuning.targets)}
    # One entry in a fixed order: equal weights are equal files, and so have one hash in the key of an image.
    metadata = {"lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({f"unet.{name}": value for name, value in module.layers().items()}, temporary, metadata=metadata)
    images = {images.name: len(images.ids) for images in adaptation.images()}
    about = {
        "key": folder.name,
        "model": diffuser.model,
        "rank": tuning.rank,
        "alpha": tuning.strength,
        "size": module.size,
        "predicts": module.predicts,
        "trained_on": {"dataset": adaptation.pool.name, "split": adaptation.pool.split, **images},
        "steps": tuning.steps,
        "loss": module.history[-1]["loss"],
        "sha256": digest_of(folder / WEIGHTS),
        **spent,
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft", "lightning")},
        "inputs": adaptation.inputs(),
        "history": module.history,
    }
    write_json(folder / ABOUT, about)
