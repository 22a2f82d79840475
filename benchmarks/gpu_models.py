"""Pipelines and towers of known models' sizes with random weights, made on their device: nothing is downloaded.

Text towers have one layer: a prompt is encoded once and drawn many times, so they are no part of the speed.
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
class Drawer:
    """A text-to-image model.

    Attributes:
        name: What it is as large as.
        kind: `sd`, `sdxl` or `flux`.
        denoiser: What its U-Net or transformer is made of.
        widths: Of the first text tower, and of the second where there is one.
        vae: What its autoencoder is made of.
        steps: Denoising steps.
        guidance: Guidance scale; above 1 every step is two passes for `sd` and `sdxl`.
        size: Height and width in pixels.
        batch: Images drawn at once.
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


DRAWERS = (
    Drawer("SD-Turbo", "sd", {**_OLD_UNET, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
           "use_linear_projection": True}, (1024,), _VAE, 1, 0.0, 512, 16),
    Drawer("SD 1.5", "sd", {**_OLD_UNET, "cross_attention_dim": 768, "attention_head_dim": 8}, (768,), _VAE,
           50, 7.5, 512, 16),
    Drawer("SDXL", "sdxl", {**_SDXL_UNET, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
           "attention_head_dim": (5, 10, 20), "projection_class_embeddings_input_dim": 2816, "sample_size": 128},
           (768, 1280), _VAE, 50, 5.0, 1024, 4),
    Drawer("Flux-schnell", "flux", {"guidance_embeds": False}, (768, 4096), _VAE, 4, 0.0, 1024, 4),
)  # fmt: skip
"""With the steps, guidance, size and batch of `conf/diffuser/`."""

_SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
_SMALL_UNET = {"layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
SMALL_DRAWERS = (
    Drawer("small SD", "sd", {**_SMALL_UNET, "block_out_channels": (8, 8, 8, 8), "cross_attention_dim": 16,
           "attention_head_dim": 4}, (16,), _SMALL_VAE, 2, 7.5, 64, 2),
    Drawer("small SDXL", "sdxl", {**_SDXL_UNET, **_SMALL_UNET, "block_out_channels": (8, 8, 8), "attention_head_dim": 4,
           "cross_attention_dim": 32, "addition_time_embed_dim": 8, "transformer_layers_per_block": 1,
           "projection_class_embeddings_input_dim": 6 * 8 + 16}, (16, 16), _SMALL_VAE, 2, 5.0, 64, 2),
    Drawer("small Flux", "flux", {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
           "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16,
           "axes_dims_rope": (4, 4, 8), "guidance_embeds": False}, (16, 16), _SMALL_VAE, 2, 0.0, 64, 2),
)  # fmt: skip
"""The same in kind, for a CPU."""

TOWERS = ("ViT-B-16", "ViT-L-14", "ViT-H-14")
SMALL_TOWER: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def pipeline_of(drawer: Drawer, device: torch.device, dtype: torch.dtype) -> Any:
    """The whole pipeline, laid out as `Diffuser.load` does."""
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that 12 billion parameters are never there in fp32
    try:
        with device:
            parts = _parts(drawer, diffusers)
    finally:
        torch.set_default_dtype(before)
    kinds = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}
    pipeline = getattr(diffusers, kinds[drawer.kind])(**parts)
    pipeline.set_progress_bar_config(disable=True)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    if device.type == "cuda":
        for name in {"unet", "vae"} & parts.keys():
            parts[name].to(memory_format=torch.channels_last)
        parts["vae"].enable_slicing()
    return pipeline


def _parts(drawer: Drawer, diffusers: Any) -> dict[str, Any]:
    transformers: Any = importlib.import_module("transformers")  # lazy modules, closed to the type checker
    tokenizer: Any = clip_tokenizer([TEXT], merges=10)
    tokenizer.model_max_length = TOKENS
    levels = len(drawer.vae["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    shift = {"shift_factor": 0.1, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    towers = []
    for place, width in enumerate(drawer.widths):
        config = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=width,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        projected = place and drawer.kind == "sdxl"
        towers.append((transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config))
    if drawer.kind == "flux":
        words = clip_tokenizer([TEXT], merges=10)
        words.model_max_length = 512
        wide = drawer.widths[1]
        t5 = transformers.T5Config(
            vocab_size=len(words), d_model=wide, d_kv=8, d_ff=wide, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
        return {
            "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
            "vae": diffusers.AutoencoderKL(**drawer.vae, **blocks, **shift),
            "text_encoder": towers[0], "tokenizer": tokenizer,
            "text_encoder_2": transformers.T5EncoderModel(t5), "tokenizer_2": words,
            "transformer": diffusers.FluxTransformer2DModel(**drawer.denoiser),
        }  # fmt: skip
    parts = {
        "scheduler": diffusers.EulerDiscreteScheduler(steps_offset=1),
        "vae": diffusers.AutoencoderKL(**drawer.vae, **blocks),
        "text_encoder": towers[0], "tokenizer": tokenizer,
        "unet": diffusers.UNet2DConditionModel(**drawer.denoiser),
    }  # fmt: skip
    if drawer.kind == "sdxl":
        return {**parts, "text_encoder_2": towers[1], "tokenizer_2": tokenizer, "add_watermarker": False}
    absent = {"safety_checker": None, "feature_extractor": None}
    return {**parts, **absent, "requires_safety_checker": False}


def brush_of(pipeline: Any, drawer: Drawer, device: torch.device, steps: int | None = None) -> SamplingPipeline:
    """The project's own way to draw with a pipeline."""
    settings = {
        "steps": (steps or drawer.steps, "num_inference_steps"),
        "guidance": (drawer.guidance, "guidance_scale"),
        "size": (drawer.size, "height", "width"),
    }
    return SamplingPipeline(pipeline, device, arguments_of(pipeline, settings, None, {}), None, noise_seed, drawer.size)


def tower_of(name: str | None, device: torch.device) -> Any:
    """A model of open_clip with random weights in fp32, as a run has it; None for a small one."""
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    with device:
        model = CLIP(**(SMALL_TOWER if name is None else open_clip.get_model_config(name) or {}))
    return model.eval()
