"""A diffusion U-Net whose low-rank adapters are tuned: the denoising loss on unlabelled images."""

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

from lgclip.lora_spec import LoraTuning, TuningBatch

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a U-Net may have been trained to say: the noise, the velocity (arXiv:2202.00512, appendix D) or the image."""

ROWS = 20
"""Rows of a history, about."""


@dataclass(frozen=True)
class Parts:
    """What is tuned, and what it takes to do so.

    Attributes:
        unet: `UNet2DConditionModel` of diffusers; it is given adapters.
        vae: Its autoencoder.
        noising: `DDPMScheduler` with the pipeline's noise levels.
        words: Embedding of every sentence, (t, l, d).
        pooled: Of SDXL, the sentences' pooled embeddings, (t, p).
        size: Height and width of the images in pixels.
    """

    unet: Any
    vae: Any
    noising: Any
    words: Tensor
    pooled: Tensor | None
    size: int


class DiffuserLora(LightningModule):
    """LoRA weights in training; nothing else of the pipeline changes.

    An image's noise, its level and what the autoencoder draws depend on its seed alone (see `TuningBatch`), so the
    losses are the same on any number of devices, in any parts, and after a resume.

    Args:
        parts: The pipeline's.
        tuning: The recipe.

    Attributes:
        history: About twenty rows, or one a step if there are fewer: the step, the mean loss since the row before,
            and the learning rate.

    Raises:
        ValueError: If the pipeline predicts something else, or a target is no layer of the U-Net.
    """

    def __init__(self, parts: Parts, tuning: LoraTuning) -> None:
        super().__init__()
        self.tuning, self.noising, self.size = tuning, parts.noising, parts.size
        self.predicts = parts.noising.config.prediction_type
        if self.predicts not in PREDICTIONS:
            raise ValueError(f"a U-Net that predicts {self.predicts}: this can tune {', '.join(PREDICTIONS)}")
        self._words, self._pooled = parts.words, parts.pooled
        self.vae: nn.Module = parts.vae.requires_grad_(False).eval()
        self.unet: nn.Module = adapted(parts.unet, tuning)
        self.history: list[dict[str, float]] = []
        self._loss = torch.zeros(())
        self.strict_loading = False  # what is frozen is in no checkpoint

    def training_step(self, batch: TuningBatch, batch_idx: int) -> Tensor:
        with self._attention():
            loss = (self.losses(batch) * batch.weights).sum() / batch.total
        self._loss = self._loss.to(loss) + loss.detach() * self.trainer.world_size
        # Lightning takes the mean over devices and over the parts of a step; what is wanted is the sum.
        return loss * (self.trainer.world_size * self.tuning.accumulate)

    def _attention(self) -> AbstractContextManager[object]:
        """The fused kernel is slow backwards on a CPU: plain products are 1.5 times as fast."""
        # What is computed twice must be so in the same way, and the second time is not in here.
        plain = self.device.type == "cpu" and not self.tuning.gradient_checkpointing
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def losses(self, batch: TuningBatch) -> Float[Tensor, " b"]:
        """The denoising loss of each image (arXiv:2006.11239, eq. 14), at a noise level of its own."""
        draws = [self._chance(seed) for seed in batch.seeds]
        times = torch.tensor([time for time, _ in draws], device=self.device)
        drawn = torch.stack([noises for _, noises in draws]).to(self.device)
        latents, noise = self._latents(batch.pixels, drawn[:, 0]), drawn[:, 1]
        noisy = self.noising.add_noise(latents, noise, times)
        targets = {"epsilon": noise, "sample": latents}
        target = targets.get(self.predicts)
        if target is None:
            target = self.noising.get_velocity(latents, noise, times)
        said = self.unet(noisy, times, **self._said(batch.captions)).sample.float()
        alpha = self.noising.alphas_cumprod.to(self.device)[times]
        weights = snr_weights(alpha, self.predicts, self.tuning.min_snr)
        return weights * (said - target).square().mean(dim=(1, 2, 3))

    def _chance(self, seed: int) -> tuple[int, Float[Tensor, "2 c h w"]]:
        """An image's noise level, what its latents are drawn with, and its noise; on the CPU, whatever the device."""
        chance = torch.Generator().manual_seed(seed)
        time = int(torch.randint(self.noising.config.num_train_timesteps, (), generator=chance))
        config: Any = self.vae.config
        side = self.size // 2 ** (len(config.block_out_channels) - 1)
        return time, torch.randn(2, config.latent_channels, side, side, generator=chance)

    @torch.no_grad()
    def _latents(self, pixels: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        vae: Any = self.vae
        # In fp32: the autoencoder of SDXL overflows in fp16.
        with torch.autocast(self.device.type, enabled=False):
            found = vae.encode(pixels).latent_dist
        return (found.mean + found.std * noise) * vae.config.scaling_factor

    def _said(self, captions: Sequence[int]) -> dict[str, Any]:
        words = self._words[list(captions)].to(self.device)
        if self._pooled is None:
            return {"encoder_hidden_states": words}
        # SDXL's original size, corner and target size (arXiv:2307.01952, sec. 2.2): those that it draws with.
        times = torch.tensor([self.size, self.size, 0, 0, self.size, self.size], device=self.device)
        added = {
            "text_embeds": self._pooled[list(captions)].to(self.device),
            "time_ids": times.expand(len(captions), -1).to(words),
        }
        return {"encoder_hidden_states": words, "added_cond_kwargs": added}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        rate_used = optimizer.param_groups[0]["lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        done, every = self.global_step + 1, max(1, self.tuning.steps // ROWS)
        if done % every == 0 or done == self.tuning.steps:
            self._note(done, rate_used)

    def _note(self, done: int, lr: float) -> None:
        since = int(self.history[-1]["step"]) if self.history else 0
        loss = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
        row = {"step": done, "loss": float(loss) / (done - since), "lr": lr}
        self._loss = torch.zeros(())
        self.history.append(row)
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in row.items()}, step=done)

    def layers(self) -> dict[str, Tensor]:
        """The LoRA weights, by the names that diffusers gives them."""
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        found = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in saved.items() if ".lora_" in name}
        checkpoint["lora"] = {"history": self.history, "loss": self._loss}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self._loss = list(checkpoint["lora"]["history"]), checkpoint["lora"]["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        tuned = [weight for weight in self.unet.parameters() if weight.requires_grad]
        optimiser = AdamW(tuned, lr=self.tuning.lr, weight_decay=self.tuning.weight_decay)
        scheduler = LambdaLR(optimiser, lambda step: rate(self.tuning, step))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def adapted(unet: Any, tuning: LoraTuning) -> Any:
    """A U-Net with new adapters, which change nothing yet: their second factor is zero. All else is frozen.

    Args:
        unet: Of diffusers.
        tuning: The recipe.

    Raises:
        ValueError: If a target is no layer of it.
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
        torch.manual_seed(tuning.seed)  # the first weights
        unet.add_adapter(config)
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    if tuning.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


def snr_weights(alpha: Float[Tensor, " b"], predicts: str, gamma: float | None) -> Float[Tensor, " b"]:
    """Min-SNR weights (arXiv:2303.09556, sec. 3.4): those of the loss on what the network says.

    Without any signal (zero terminal SNR, arXiv:2305.08891) the weight of a velocity is 0, of a noise 1.

    Args:
        alpha: Share of the image in the noisy one, squared.
        predicts: One of `PREDICTIONS`.
        gamma: Greatest signal-to-noise ratio that counts; None weighs all levels alike.
    """
    if gamma is None:
        return torch.ones_like(alpha)
    snr = alpha / (1 - alpha)
    limited = snr.clamp(max=gamma)
    if predicts == "epsilon":
        return torch.where(snr > 0, limited / snr, 1.0)
    return limited / (snr + 1) if predicts == "v_prediction" else limited


def rate(tuning: LoraTuning, step: int) -> float:
    """The learning rate of a step, as a share of the peak: a linear warm-up, then a cosine (arXiv:1608.03983) or none.

    Args:
        tuning: The recipe.
        step: Which step, from 0.
    """
    if step < tuning.warmup:
        return (step + 1) / tuning.warmup
    if tuning.schedule == "constant":
        return 1.0
    left = max(1, tuning.steps - tuning.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - tuning.warmup) / left)))
