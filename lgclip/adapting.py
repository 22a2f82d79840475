"""The stage that tunes LoRA weights on a data set's images: to a folder of the store that `diffuser.lora` reads.

STORE/adapters/KEY/pytorch_lora_weights.safetensors    the weights, in the format of diffusers
STORE/adapters/KEY/lora.json                           what they were tuned from; written last
STORE/adapters/KEY/checkpoints/                        while they are tuned, so that the same command goes on
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch import Tensor

from lgclip.adaptation import Adaptation
from lgclip.checkpoint import SafetensorsIO, last_checkpoint
from lgclip.diffuser.embeddings import Texts
from lgclip.diffuser.sampler import replace_scheduler
from lgclip.encoder.precision import decided
from lgclip.identity import digest_of, key_of
from lgclip.ledger import Account
from lgclip.methods.diffuser_lora import DiffuserLora, Parts
from lgclip.stages import Stages
from lgclip.steps import StepBar
from lgclip.training import PRECISION, Fitted, train_once
from lgclip.tuning_pool import TuningPool
from lgclip.whole import write_json, write_whole

WEIGHTS, ABOUT = "pytorch_lora_weights.safetensors", "lora.json"


def _last_loss(learner: DiffuserLora) -> dict[str, float]:
    return {"loss": learner.history[-1]["loss"]} if learner.history else {}


def folder_of(adaptation: Adaptation, root: Path) -> Path:
    """Where the weights lie, or will lie: what `diffuser.lora` is set to.

    Args:
        adaptation: What is tuned, and on what.
        root: The store's folder.
    """
    return root / "adapters" / key_of(adaptation.inputs())


def is_tuned(folder: Path) -> bool:
    """Whether a tuning has ended."""
    return (folder / ABOUT).is_file() and (folder / WEIGHTS).is_file()


def adapt(
    stages: Stages,
    make_trainer: Callable[..., Trainer],
    adaptation: Adaptation,
    root: Path,
    *,
    logger: Any = False,
    workers: int = 0,
) -> Path:
    """Tunes LoRA weights, unless they are there; what was interrupted goes on.

    Args:
        stages: Keeps account of it.
        make_trainer: Makes a Lightning trainer of the run's devices from the arguments it is given besides.
        adaptation: What is tuned, and on what.
        root: The store's folder.
        logger: Of Lightning; False for none.
        workers: Processes that decode images.

    Returns:
        The folder of the weights.

    Raises:
        ValueError: If an image cannot be read, or the pipeline cannot be had or tuned.
    """
    folder, tuning = folder_of(adaptation, root), adaptation.tuning

    def train() -> Fitted:
        trainer = make_trainer(
            max_steps=tuning.steps,
            max_epochs=-1,
            precision=PRECISION[decided(tuning.precision)],
            accumulate_grad_batches=tuning.accumulate,
            gradient_clip_val=tuning.clip,
            plugins=[SafetensorsIO()],
            callbacks=[last_checkpoint(folder / "checkpoints", tuning.checkpoint_every), StepBar("lora", _last_loss)],
            logger=logger,
            log_every_n_steps=1,
        )
        learner = learner_of(adaptation, trainer.strategy.root_device)
        pool = TuningPool(tuning, adaptation.images(), learner.size, workers)
        last = folder / "checkpoints" / "last.safetensors"
        trainer.fit(learner, datamodule=pool, ckpt_path=last if last.exists() else None)
        return trainer, lambda spent: _write(folder, adaptation, learner, spent)

    spared = Account("lora", 0, tuning.steps, 0.0, "step")
    return train_once(folder, stages, spared, train, there=is_tuned(folder))


def learner_of(adaptation: Adaptation, device: torch.device) -> DiffuserLora:
    """What is tuned, before any step; the text encoders are used here, and then left.

    Args:
        adaptation: What is tuned, and on what.
        device: Where the sentences are encoded.

    Raises:
        ValueError: If the pipeline cannot be had or tuned.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    tuning, diffuser = adaptation.tuning, adaptation.pipeline
    pipeline = replace(diffuser, precision=decided(tuning.precision)).pipeline()
    if diffuser.scheduler is not None:
        replace_scheduler(pipeline, diffuser.scheduler, diffuser.scheduler_options)
    own = pipeline.scheduler
    if "beta_schedule" not in own.config or own.config.get("use_flow_sigmas"):
        raise ValueError(
            f"diffuser.model={diffuser.model}: {type(own).__name__} counts noise otherwise than method=diffuser_lora "
            "does, which needs a scheduler with a beta_schedule; name one by diffuser.scheduler"
        )
    words, pooled = _words(pipeline, adaptation.sentences(), device)
    unet, vae = pipeline.unet, pipeline.vae.float()
    size = diffuser.size or unet.config.sample_size * pipeline.vae_scale_factor
    # The step that it adds to a time counts where images are drawn, not where noise is.
    noising = DDPMScheduler.from_config(own.config)
    return DiffuserLora(Parts(unet, vae, noising, words, pooled, size), tuning)


@torch.no_grad()  # not `inference_mode`, whose tensors no gradient may pass
def _words(pipeline: Any, sentences: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The embeddings of some sentences, and of SDXL the pooled ones; on the CPU."""
    for name in {"text_encoder", "text_encoder_2"} & pipeline.components.keys():
        pipeline.components[name].to(device)
    said = Texts(pipeline, device)(sentences)
    pooled = said.get("pooled_prompt_embeds")
    return said["prompt_embeds"].cpu(), None if pooled is None else pooled.cpu()


def _write(folder: Path, adaptation: Adaptation, learner: DiffuserLora, spent: dict[str, object]) -> None:
    """Writes the weights, and what is told of them last."""
    tuning, diffuser = adaptation.tuning, adaptation.pipeline
    told_of = {"unet.r": tuning.rank, "unet.lora_alpha": tuning.strength, "unet.target_modules": list(tuning.targets)}
    # One entry in a fixed order: equal weights are equal files, and so have one hash in the key of an image.
    metadata = {"lora_adapter_metadata": json.dumps(told_of, sort_keys=True)}
    with write_whole(folder / WEIGHTS) as temporary:
        save_file({f"unet.{name}": value for name, value in learner.layers().items()}, temporary, metadata=metadata)
    images = {images.name: len(images.ids) for images in adaptation.images()}
    about = {
        "key": folder.name,
        "model": diffuser.model,
        "rank": tuning.rank,
        "alpha": tuning.strength,
        "size": learner.size,
        "predicts": learner.predicts,
        "trained_on": {"dataset": adaptation.pool.name, "split": adaptation.pool.split, **images},
        "steps": tuning.steps,
        "loss": learner.history[-1]["loss"],
        "sha256": digest_of(folder / WEIGHTS),
        **spent,
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft", "lightning")},
        "inputs": adaptation.inputs(),
        "history": learner.history,
    }
    write_json(folder / ABOUT, about)


def told(folder: Path) -> str:
    """One line on tuned weights: their folder, and on what they were tuned.

    Args:
        folder: Where they lie.
    """
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    trained, rows = about["trained_on"], about["history"]
    first, last = (f"{row['loss']:.4f}" for row in (rows[0], rows[-1]))
    return (
        f"{folder}: {about['steps']} steps on {trained['pool']:,} images of {trained['dataset']}, mean loss {first} "
        f"up to step {rows[0]['step']} and {last} in the last ones; draw with diffuser.lora={folder}"
    )
