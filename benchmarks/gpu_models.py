"""Builds pipelines and towers in the sizes of known models with random weights on the device, without downloads.

Text towers have one layer, because a prompt is encoded once for many images and hardly affects the speed.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lgclip.diffuser.base import noise_seed
from lgclip.diffuser.sampling_loop import SamplingPipeline, arguments_of
from lgclip.tiny.vocabulary import clip_tokenizer

TEXT = "a photo of a thing."
TOKENS = 77
UNET = "UNet2DConditionModel"
_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_OLD_UNET = {"block_out_channels": (320, 640, 1280, 1280), "sample_size": 64}
_SDXL_UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}


@dataclass(frozen=True)
class PipelineConfig:
    """Describes a text-to-image model.

    Attributes:
        name: Model of the same size.
        kind: `sd`, `sdxl` or `flux`.
        denoiser: Arguments of the U-Net or transformer.
        widths: Width of the first text tower, and of the second if there is one.
        vae: Arguments of the autoencoder.
        steps: Denoising steps.
        guidance: Guidance scale; above 1 every step is two passes for `sd` and `sdxl`.
        size: Height and width in pixels.
        batch: Batch size.
    """

    name: str
    kind: str
    denoiser: Mapping[str, Any]
    widths: tuple[int, ...]
    vae: Mapping[str, Any]
    steps: int
    guidance: float
    size: int
    batch: int


PIPELINES = (
    PipelineConfig(
        name="SD-Turbo",
        kind="sd",
        denoiser={
            **_OLD_UNET,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        widths=(1024,),
        vae=_VAE,
        steps=1,
        guidance=0.0,
        size=512,
        batch=16,
    ),
    PipelineConfig(
        name="SD 1.5",
        kind="sd",
        denoiser={**_OLD_UNET, "cross_attention_dim": 768, "attention_head_dim": 8},
        widths=(768,),
        vae=_VAE,
        steps=50,
        guidance=7.5,
        size=512,
        batch=16,
    ),
    PipelineConfig(
        name="SDXL",
        kind="sdxl",
        denoiser={
            **_SDXL_UNET,
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        widths=(768, 1280),
        vae=_VAE,
        steps=50,
        guidance=5.0,
        size=1024,
        batch=4,
    ),
    PipelineConfig(
        name="Flux-schnell",
        kind="flux",
        denoiser={"guidance_embeds": False},
        widths=(768, 4096),
        vae=_VAE,
        steps=4,
        guidance=0.0,
        size=1024,
        batch=4,
    ),
)
"""Models with the steps, guidance, size and batch size of `conf/diffuser/`."""

_SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
_SMALL_UNET = {"layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
SMALL_PIPELINES = (
    PipelineConfig(
        name="small SD",
        kind="sd",
        denoiser={
            **_SMALL_UNET,
            "block_out_channels": (8, 8, 8, 8),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
        },
        widths=(16,),
        vae=_SMALL_VAE,
        steps=2,
        guidance=7.5,
        size=64,
        batch=2,
    ),
    PipelineConfig(
        name="small SDXL",
        kind="sdxl",
        denoiser={
            **_SDXL_UNET,
            **_SMALL_UNET,
            "block_out_channels": (8, 8, 8),
            "attention_head_dim": 4,
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": 1,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        },
        widths=(16, 16),
        vae=_SMALL_VAE,
        steps=2,
        guidance=5.0,
        size=64,
        batch=2,
    ),
    PipelineConfig(
        name="small Flux",
        kind="flux",
        denoiser={
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
            "guidance_embeds": False,
        },
        widths=(16, 16),
        vae=_SMALL_VAE,
        steps=2,
        guidance=0.0,
        size=64,
        batch=2,
    ),
)
"""Tiny models of the same kinds, for a CPU."""

TOWERS = ("ViT-B-16", "ViT-L-14", "ViT-H-14")
SMALL_TOWER: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def build_pipeline(config: PipelineConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Returns a pipeline in the memory layout of `Diffuser.load`."""
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # avoids 12 billion parameters in fp32
    try:
        with device:
            parts = _build_parts(config, diffusers)
    finally:
        torch.set_default_dtype(default_dtype)
    kinds = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}
    pipeline = getattr(diffusers, kinds[config.kind])(**parts)
    pipeline.set_progress_bar_config(disable=True)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    if device.type == "cuda":
        for name in {"unet", "vae"} & parts.keys():
            parts[name].to(memory_format=torch.channels_last)
        parts["vae"].enable_slicing()
    return pipeline


def _build_parts(config: PipelineConfig, diffusers: Any) -> dict[str, Any]:
    transformers: Any = importlib.import_module("transformers")  # lazy modules, which the type checker cannot resolve
    tokenizer: Any = clip_tokenizer([TEXT], merges=10)
    tokenizer.model_max_length = TOKENS
    levels = len(config.vae["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    shift = {"shift_factor": 0.1, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    towers = []
    for index, width in enumerate(config.widths):
        text_config = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=width,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        projected = index > 0 and config.kind == "sdxl"
        towers.append(
            (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(text_config)
        )
    if config.kind == "flux":
        t5_tokenizer = clip_tokenizer([TEXT], merges=10)
        t5_tokenizer.model_max_length = 512
        t5_width = config.widths[1]
        t5 = transformers.T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=t5_width,
            d_kv=8,
            d_ff=t5_width,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
        return {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
            "vae": diffusers.AutoencoderKL(**config.vae, **blocks, **shift),
            "text_encoder": towers[0], "tokenizer": tokenizer,
            "text_encoder_2": transformers.T5EncoderModel(t5), "tokenizer_2": t5_tokenizer,
            "transformer": diffusers.FluxTransformer2DModel(**config.denoiser),
        }  # fmt: skip
    parts = {
        "scheduler": diffusers.EulerDiscreteScheduler(steps_offset=1),
        "vae": diffusers.AutoencoderKL(**config.vae, **blocks),
        "text_encoder": towers[0], "tokenizer": tokenizer,
        "unet": diffusers.UNet2DConditionModel(**config.denoiser),
    }  # fmt: skip
    if config.kind == "sdxl":
        return {**parts, "text_encoder_2": towers[1], "tokenizer_2": tokenizer, "add_watermarker": False}
    absent = {"safety_checker": None, "feature_extractor": None}
    return {**parts, **absent, "requires_safety_checker": False}


def build_sampler(
    pipeline: Any, config: PipelineConfig, device: torch.device, steps: int | None = None
) -> SamplingPipeline:
    """Returns the sampling loop of lgclip for a pipeline."""
    settings = {
        "steps": (steps or config.steps, "num_inference_steps"),
        "guidance": (config.guidance, "guidance_scale"),
        "size": (config.size, "height", "width"),
    }
    return SamplingPipeline(pipeline, device, arguments_of(pipeline, settings, None, {}), None, noise_seed, config.size)


def build_tower(name: str | None, device: torch.device) -> Any:
    """Returns an open_clip model with random weights in fp32, as a run loads it; a tiny one if `name` is None."""
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    with device:
        model = CLIP(**(SMALL_TOWER if name is None else open_clip.get_model_config(name) or {}))
    return model.eval()
