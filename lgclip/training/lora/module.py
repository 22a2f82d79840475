"""Tunes low-rank adapters of a diffusion U-Net by the denoising loss on unlabelled images."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lgclip.training.lora.config import LoraTuning, TuningBatch

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""Prediction types of a U-Net: the noise, the velocity (arXiv:2202.00512, appendix D) or the image."""

ROWS = 20
"""Approximate number of rows of a history."""


@dataclass(frozen=True)
class Parts:
    """Holds the models that a tuning needs.

    Attributes:
        unet: `UNet2DConditionModel` of diffusers; adapters are added to it.
        vae: Its autoencoder.
        noising: `DDPMScheduler` with the pipeline's noise levels.
        words: Embedding of every sentence, (t, l, d).
        pooled: For SDXL, the sentences' pooled embeddings, (t, p).
        size: Height and width of the images in pixels.
    """

    unet: Any
    vae: Any
    noising: Any
    words: Tensor
    pooled: Tensor | None
    size: int


class DiffuserLora(LightningModule):
    """Trains LoRA weights; nothing else of the pipeline changes.

    An image's noise, noise level and latent sample depend only on its seed (see `TuningBatch`), so that the
    losses are the same for any number of devices or accumulation parts, and after a resume.

    Args:
        parts: The pipeline's models.
        tuning: The recipe.

    Attributes:
        history: About twenty rows, or one per step if there are fewer: the step, the mean loss since the previous row,
            and the learning rate.

    Raises:
        ValueError: If the pipeline predicts something else, or a target is not a layer of the U-Net.
    """

    def __init__(self, parts: Parts, tuning: LoraTuning) -> None:
        super().__init__()
        self.tuning = tuning
        self.noising = parts.noising
        self.size = parts.size
        self.predicts = parts.noising.config.prediction_type
        # Flow matching predicts something else and noises otherwise; its loss would fall, and the images would be
        # ruined.
        if self.predicts not in PREDICTIONS:
            raise ValueError(f"a U-Net that predicts {self.predicts}: this can tune {', '.join(PREDICTIONS)}")
        # Tensors and no buffers: they stay on the CPU, and go to the device by the few that a step needs.
        self._words = parts.words
        self._pooled = parts.pooled
        self.vae: nn.Module = parts.vae.requires_grad_(False).eval()
        self.unet: nn.Module = adapted(parts.unet, tuning)
        self.history: list[dict[str, float]] = []
        self._loss = torch.zeros(())
        self.strict_loading = False  # what is frozen is in no checkpoint

    def training_step(self, batch: TuningBatch, batch_idx: int) -> Tensor:
        with self._attention():
            loss = (self.losses(batch) * batch.weights).sum() / batch.total
        # Summed on the device: reading it in each step would make the CPU wait for the GPU.
        self._loss = self._loss.to(loss) + loss.detach() * self.trainer.world_size
        # Lightning takes the mean over devices and over the parts of a step; what is wanted is the sum.
        return loss * (self.trainer.world_size * self.tuning.accumulate)

    def _attention(self) -> AbstractContextManager[object]:
        """Selects the attention kernel: plain products on a CPU, where the fused kernel's backward pass is slower."""
        # What is computed twice must be so in the same way, and the second time is not in here.
        plain = self.device.type == "cpu" and not self.tuning.gradient_checkpointing
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def losses(self, batch: TuningBatch) -> Float[Tensor, " b"]:
        """Computes the denoising loss of each image (arXiv:2006.11239, eq. 14), at its own noise level."""
        # One generator for each image: a generator for the batch would tie an image's noise to its neighbors.
        noise_draws = [self._random_values(seed) for seed in batch.seeds]
        times = torch.tensor([time for time, _ in noise_draws], device=self.device)
        step_noise = torch.stack([noises for _, noises in noise_draws]).to(self.device)
        latents = self._latents(batch.pixels, step_noise[:, 0])
        noise = step_noise[:, 1]
        noisy = self.noising.add_noise(latents, noise, times)
        targets = {"epsilon": noise, "sample": latents}
        target = targets.get(self.predicts)
        if target is None:
            target = self.noising.get_velocity(latents, noise, times)
        # The difference in fp32, whatever the U-Net computes in: near the end it is small, and squared.
        predicted = self.unet(noisy, times, **self._text_conditions(batch.captions)).sample.float()
        alpha = self.noising.alphas_cumprod.to(self.device)[times]
        weights = snr_weights(alpha, self.predicts, self.tuning.min_snr)
        return weights * (predicted - target).square().mean(dim=(1, 2, 3))

    def _random_values(self, seed: int) -> tuple[int, Float[Tensor, "2 c h w"]]:
        """Samples an image's noise level, latent noise and diffusion noise; on the CPU, whatever the device."""
        chance = torch.Generator().manual_seed(seed)
        time = int(torch.randint(self.noising.config.num_train_timesteps, (), generator=chance))
        config: Any = self.vae.config
        # Every block of the autoencoder but the last halves the sides.
        side = self.size // 2 ** (len(config.block_out_channels) - 1)
        # Two samples in one call: the first for the autoencoder's latents, the second for the noise.
        return time, torch.randn(2, config.latent_channels, side, side, generator=chance)

    @torch.no_grad()
    def _latents(self, pixels: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        vae: Any = self.vae
        # In fp32: the autoencoder of SDXL overflows in fp16.
        with torch.autocast(self.device.type, enabled=False):
            distribution = vae.encode(pixels).latent_dist
        # Sampled by hand, since `sample()` uses the generator of its device.
        return (distribution.mean + distribution.std * noise) * vae.config.scaling_factor

    def _text_conditions(self, captions: Sequence[int]) -> dict[str, Any]:
        words = self._words[list(captions)].to(self.device)
        if self._pooled is None:
            return {"encoder_hidden_states": words}
        # SDXL's original size, corner and target size (arXiv:2307.01952, sec. 2.2): those that it generates with.
        times = torch.tensor([self.size, self.size, 0, 0, self.size, self.size], device=self.device)
        added = {
            "text_embeds": self._pooled[list(captions)].to(self.device),
            "time_ids": times.expand(len(captions), -1).to(words),
        }
        return {"encoder_hidden_states": words, "added_cond_kwargs": added}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        # Read before the step: after it the scheduler has set the next one's.
        rate_used = optimizer.param_groups[0]["lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # The global step is counted up only after this hook.
        step = self.global_step + 1
        every = max(1, self.tuning.steps // ROWS)
        if step % every == 0 or step == self.tuning.steps:
            self._note(step, rate_used)

    def _note(self, step: int, lr: float) -> None:
        # The last row may cover fewer steps than the others, so its mean is over those.
        since = int(self.history[-1]["step"]) if self.history else 0
        loss = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
        row = {"step": step, "loss": float(loss) / (step - since), "lr": lr}
        self._loss = torch.zeros(())
        self.history.append(row)
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in row.items()}, step=step)

    def layers(self) -> dict[str, Tensor]:
        """Returns the LoRA weights, by their names in diffusers."""
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        # peft and diffusers name the same layers differently; the file is for `load_lora_weights` of diffusers.
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        return {name: value.detach().cpu().clone().contiguous() for name, value in layers.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The frozen U-Net is gigabytes that never change, and a checkpoint is written every hundred steps.
        saved = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in saved.items() if ".lora_" in name}
        checkpoint["lora"] = {"history": self.history, "loss": self._loss}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["lora"]["history"])
        self._loss = checkpoint["lora"]["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        tuned = [weight for weight in self.unet.parameters() if weight.requires_grad]
        optimizer = AdamW(tuned, lr=self.tuning.lr, weight_decay=self.tuning.weight_decay)
        scheduler = LambdaLR(optimizer, lambda step: rate(self.tuning, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def adapted(unet: Any, tuning: LoraTuning) -> Any:
    """Adds new adapters to a U-Net, which change nothing yet: their second factor is zero. All else is frozen.

    Args:
        unet: U-Net of diffusers.
        tuning: The recipe.

    Raises:
        ValueError: If a target is not a layer of it.
    """
    from peft import LoraConfig

    for target in tuning.targets:
        if not any(name == target or name.endswith(f".{target}") for name, _ in unet.named_modules()):
            raise ValueError(f"method.targets: the U-Net has no layer {target!r}; it has to_q, to_k, to_v and to_out.0")
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.strength,  # pyright: ignore[reportArgumentType]
        init_lora_weights="gaussian",
        target_modules=list(tuning.targets),
    )
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        # peft samples the initial weights from torch's global generator, which is restored afterwards.
        torch.manual_seed(tuning.seed)
        unet.add_adapter(config)
    # The adapters are in fp32 also where the frozen weights are in half precision: an update of 1e-4 of a weight is
    # lost in bf16.
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    if tuning.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


def snr_weights(alpha: Float[Tensor, " b"], predicts: str, gamma: float | None) -> Float[Tensor, " b"]:
    """Computes min-SNR weights (arXiv:2303.09556, sec. 3.4) for the loss on the network's output.

    Without any signal (zero terminal SNR, arXiv:2305.08891) the weight is 0 for velocity prediction, 1 for noise.

    Args:
        alpha: Cumulative signal power of the noisy image (alpha bar).
        predicts: One of `PREDICTIONS`.
        gamma: Maximum signal-to-noise ratio; None weights all levels equally.
    """
    if gamma is None:
        return torch.ones_like(alpha)
    # Alpha is the cumulative product of the schedule, so this is the paper's SNR(t).
    snr = alpha / (1 - alpha)
    limited = snr.clamp(max=gamma)
    if predicts == "epsilon":
        # 0 / 0 without any signal; the limit is 1.
        return torch.where(snr > 0, limited / snr, 1.0)
    if predicts == "v_prediction":
        return limited / (snr + 1)
    return limited


def rate(tuning: LoraTuning, step: int) -> float:
    """Returns the learning rate relative to the peak: linear warm-up, then cosine (arXiv:1608.03983) or constant.

    Args:
        tuning: The recipe.
        step: Index of the step, from 0.
    """
    if step < tuning.warmup:
        # From 1 / warmup and not from 0: a step at rate 0 would learn nothing and cost as much.
        return (step + 1) / tuning.warmup
    if tuning.schedule == "constant":
        return 1.0
    decay_steps = max(1, tuning.steps - tuning.warmup)
    # The scheduler is called again after the last step, where the cosine must not rise again.
    progress = min(1.0, (step - tuning.warmup) / decay_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
