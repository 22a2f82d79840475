"""Trains the U-Net and text tower of `diffuser=tiny`, on the latents of the small autoencoder."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lgclip.store.atomic import atomic_write
from lgclip.tiny.corpus import Corpus
from lgclip.tiny.recipe import Recipe
from lgclip.tiny.vocabulary import CONTEXT_LENGTH, clip_ids, clip_tokenizer

CAPTIONS_PER_IMAGE = 4
UNCONDITIONAL = 0.1
"""Fraction of images whose caption is dropped, for classifier-free guidance (arXiv:2207.12598)."""
SNR_CEILING = 5.0
"""Gamma of min-SNR weighting (arXiv:2303.09556)."""


class TinyDenoiser(Recipe):
    """Trains a latent diffusion model: v-prediction, zero terminal SNR (arXiv:2305.08891), min-SNR weights.

    Args:
        corpus: Captioned images.
        autoencoder: Folder of the trained autoencoder.
        channels: Width at 16 and 8 latent pixels; attention is at 8.
        text_layers: Blocks of the text tower, which is trained jointly.
        **schedule: See `Recipe`.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        autoencoder: str | Path,
        channels: tuple[int, int] = (64, 128),
        text_layers: int = 2,
        **schedule: float,
    ) -> None:
        super().__init__(corpus, **schedule)  # pyright: ignore[reportArgumentType]
        self.autoencoder: Any = AutoencoderKL.from_pretrained(autoencoder, dtype=torch.float32).requires_grad_(False)
        self.latents = self._latents(Path(autoencoder) / "latents.safetensors")
        captions = corpus.captions(CAPTIONS_PER_IMAGE)
        self.tokenizer: Any = clip_tokenizer(chain.from_iterable(captions))
        self.tokens = clip_ids(self.tokenizer, captions)
        self.no_caption = clip_ids(self.tokenizer, [[""]])[0, 0]
        # Stable Diffusion's schedule, changed in two ways that belong together (arXiv:2305.08891): the last step is
        # pure noise, as sampling begins, and steps are taken from the end. Otherwise no image is dark or bright.
        self.noising = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            steps_offset=1,
            clip_sample=False,
        )
        text: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=128,
                intermediate_size=512,
                projection_dim=128,
                num_hidden_layers=text_layers,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        unet: Any = UNet2DConditionModel(
            sample_size=self.latents.shape[-1],
            in_channels=self.latents.shape[1],
            out_channels=self.latents.shape[1],
            block_out_channels=channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=4,  # diffusers reads it as the number of heads
            norm_num_groups=16,
        )
        self.model = nn.ModuleDict({"text": text, "unet": unet})

    def _latents(self, cache: Path) -> Float[Tensor, "n c 16 16"]:
        """Returns the mean latents of the corpus at unit scale, in half precision; encoded once."""
        if not cache.exists():
            parts: list[Tensor] = []
            with torch.inference_mode():
                scale = self.autoencoder.config.scaling_factor
                for batch in self.corpus.images.split(256):
                    # The mean and no sample: the posterior is so narrow that its noise teaches nothing.
                    mean = self.autoencoder.encode(batch.float() / 127.5 - 1).latent_dist.mean
                    parts.append((mean * scale).half())
            with atomic_write(cache) as temporary:
                save_file({"latents": torch.cat(parts)}, temporary)
        return load_file(cache)["latents"]

    def loss(self, indices: Int[Tensor, " b"]) -> Tensor:
        n = len(indices)
        share = self.share
        # All random numbers are sampled for the whole batch and on every device; see `Recipe`.
        tokens = self.tokens[indices, torch.randint(CAPTIONS_PER_IMAGE, (n,))].clone()
        tokens[torch.rand(n) < UNCONDITIONAL] = self.no_caption
        words = self.model["text"](tokens[share].to(self.device)).last_hidden_state
        # One time step from each of n equal parts of the schedule: less noise in the loss.
        levels = len(self.noising.alphas_cumprod)
        times = ((torch.arange(n) + torch.rand(n)) / n * levels).long()[share].to(self.device)
        latents = self.latents[indices[share]].float().to(self.device)
        noise = torch.randn(n, *latents.shape[1:], device=self.device)[share]
        noisy = self.noising.add_noise(latents, noise, times)  # pyright: ignore[reportArgumentType]
        target = self.noising.get_velocity(latents, noise, times)  # pyright: ignore[reportArgumentType]
        predicted = self.model["unet"](noisy, times, words).sample.float()
        alpha = self.noising.alphas_cumprod.to(self.device)[times]
        snr = alpha / (1 - alpha)
        # min(SNR, gamma) / (SNR + 1), the form of the weight for v-prediction.
        weight = snr.clamp(max=SNR_CEILING) / (snr + 1)
        # At zero SNR the weight would be 0 and color at the start would never be learned.
        weight = weight.clamp(min=0.1)
        loss = (weight * (predicted - target).square().mean(dim=(1, 2, 3))).mean()
        return self.weigh(loss, len(latents), n)

    def save(self, folder: Path) -> None:
        # DDPM serves for training; this solver needs a fraction of its steps to generate an image.
        scheduler: Any = DPMSolverMultistepScheduler.from_config(self.noising.config)
        pipeline = StableDiffusionPipeline(
            vae=self.autoencoder,
            text_encoder=self.model["text"],  # pyright: ignore[reportArgumentType]
            tokenizer=self.tokenizer,
            unet=self.model["unet"],  # pyright: ignore[reportArgumentType]
            scheduler=scheduler,
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(folder)
        pipeline.to(dtype=torch.float32)
