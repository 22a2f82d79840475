"""Creates text-to-image pipelines with random weights, one per family, as the hub has them."""

import importlib
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from factories import NAMES, SENTENCES, make_diffuser
from tokenizers.pre_tokenizers import ByteLevel

from lgclip.tiny.vocabulary import CONTEXT_LENGTH, clip_tokenizer

diffusers: Any = importlib.import_module("diffusers")  # lazy modules, closed to the type checker
transformers: Any = importlib.import_module("transformers")

TEXTS = [sentence.replace("{}", name) for sentence, name in product(SENTENCES, NAMES)]
WIDTH = 16
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['content'] + '\\n' }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<|im_end|>{% endif %}"
)
"""A chat template that heeds what Z-Image and Flux 2 ask of theirs."""


def clip(*, projection: bool = False) -> tuple[Any, Any]:
    """Returns a CLIP text tower and its tokenizer."""
    tokenizer = clip_tokenizer(TEXTS, merges=60)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, projection_dim=WIDTH,
        num_attention_heads=2, max_position_embeddings=CONTEXT_LENGTH, hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    tower = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tower(config).eval(), tokenizer


def t5() -> tuple[Any, Any]:
    """Returns a T5 encoder and its tokenizer."""
    words = sorted({f"▁{word}" for text in TEXTS for word in text.split()})
    letters = sorted(set(chain.from_iterable(TEXTS)) | {"▁"})
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    vocab += [(piece, -2.0) for piece in dict.fromkeys([*words, *letters])]
    tokenizer = transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=32)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5EncoderModel(config).eval(), tokenizer


def qwen(layers: int = 2) -> tuple[Any, Any]:
    """Returns a Qwen3 language model and its tokenizer with a chat template."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=["<|im_start|>"])
    tokenizer.chat_template = CHAT
    config = transformers.Qwen3Config(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=layers, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).eval(), tokenizer


def gemma() -> tuple[Any, Any]:
    """Returns a Gemma 2 model and its tokenizer."""
    signs = sorted(set(chain.from_iterable(TEXTS)) | set(map(chr, range(32, 127))) | {"▁"})
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*specials, *signs]))}
    tokenizer = transformers.GemmaTokenizer(vocab=vocab, merges=[])
    config = transformers.Gemma2Config(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    return transformers.Gemma2Model(config).eval(), tokenizer


def vae(channels: int = 4, **settings: Any) -> Any:
    """Returns an autoencoder that halves the sides once."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, **settings,
    )  # fmt: skip


def sdxl() -> Any:
    first, tokenizer = clip()
    second, tokenizer_2 = clip(projection=True)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4), norm_num_groups=4, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading")
    return diffusers.StableDiffusionXLPipeline(
        vae(), first, second, tokenizer, tokenizer_2, unet, scheduler, add_watermarker=False
    )


def sd3() -> Any:
    first, tokenizer = clip(projection=True)
    second, tokenizer_2 = clip(projection=True)
    third, tokenizer_3 = t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=32, pooled_projection_dim=2 * WIDTH, out_channels=4,
    )  # fmt: skip
    third_wide = transformers.T5EncoderModel(transformers.T5Config(**{**third.config.to_dict(), "d_model": 2 * WIDTH}))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.StableDiffusion3Pipeline(
        transformer, scheduler, vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        first, tokenizer, second, tokenizer_2, third_wide.eval(), tokenizer_3,
    )  # fmt: skip


def flux() -> Any:
    first, tokenizer = clip()
    second, tokenizer_2 = t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(
        scheduler, vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False), first, tokenizer, second,
        tokenizer_2, transformer,
    )  # fmt: skip


def flux2_klein(*, is_distilled: bool = True) -> Any:
    language, tokenizer = qwen(layers=4)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )  # fmt: skip
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(4)  # its gates are near shut too
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.Flux2KleinPipeline(scheduler, autoencoder, language, tokenizer, transformer, is_distilled)


def sana_parts(*, guidance_embeds: bool) -> tuple[Any, Any, Any, Any]:
    """Returns tokenizer, language model, autoencoder and transformer."""
    language, tokenizer = gemma()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=32,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=WIDTH, caption_channels=WIDTH,
        guidance_embeds=guidance_embeds,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4, encoder_block_types=("ResBlock", "ResBlock"), decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        attention_head_dim=4, upsample_block_type="interpolate", downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    return tokenizer, language, autoencoder, transformer


def sana() -> Any:
    tokenizer, language, autoencoder, transformer = sana_parts(guidance_embeds=False)
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return diffusers.SanaPipeline(tokenizer, language, autoencoder, transformer, scheduler)


def sana_sprint() -> Any:
    tokenizer, language, autoencoder, transformer = sana_parts(guidance_embeds=True)
    return diffusers.SanaSprintPipeline(tokenizer, language, autoencoder, transformer, diffusers.SCMScheduler())


def pixart_sigma() -> Any:
    language, tokenizer = t5()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=WIDTH,
        in_channels=4, cross_attention_dim=WIDTH, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer, language, vae(), transformer, diffusers.DPMSolverMultistepScheduler()
    )


def z_image() -> Any:
    language, tokenizer = qwen()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    autoencoder = vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
    return diffusers.ZImagePipeline(scheduler, autoencoder, language, tokenizer, transformer)


FAMILIES: dict[str, Callable[..., Any]] = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2_klein": flux2_klein,
    "sana": sana,
    "sana_sprint": sana_sprint,
    "pixart_sigma": pixart_sigma,
    "z_image": z_image,
}


def family_folder(family: str, folder: Path) -> Path:
    """Saves a pipeline of a family."""
    if family == "sd":
        return make_diffuser(folder)
    torch.manual_seed(1)
    pipeline = FAMILIES[family]()
    for name in {"unet", "transformer"} & pipeline.components.keys():
        for weight in pipeline.components[name].parameters():
            if not weight.any():  # a new gate is shut: nothing said would reach the image
                torch.nn.init.normal_(weight, std=0.3)
    pipeline.save_pretrained(folder)
    return folder


def guarded_folder(folder: Path, limit: float) -> Path:
    """Saves a Stable Diffusion pipeline whose safety checker flags images similar to its first concept.

    Args:
        folder: Where to save it.
        limit: Similarity from which an image is flagged; 1 flags none, -1 all.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(make_diffuser(folder))
    torch.manual_seed(2)
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "projection_dim": WIDTH,
    }  # fmt: skip
    text = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.normal_(checker.concept_embeds)
    checker.concept_embeds_weights.data.fill_(2.0)  # more than any cosine
    checker.special_care_embeds_weights.data.fill_(2.0)
    checker.concept_embeds_weights.data[0] = limit
    size = {"shortest_edge": 32}
    looking = transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    diffusers.StableDiffusionPipeline(
        **{**pipeline.components, "safety_checker": checker, "feature_extractor": looking}, requires_safety_checker=True
    ).save_pretrained(folder)
    return folder


def similarity(pipeline: Any, pixels: Any) -> list[float]:
    """Returns the similarity of each image to the first concept of a pipeline's safety checker."""
    from PIL import Image

    checker = pipeline.safety_checker
    inputs = pipeline.feature_extractor([Image.fromarray(image) for image in pixels], return_tensors="pt").pixel_values
    with torch.inference_mode():
        seen = checker.visual_projection(checker.vision_model(inputs)[1])
    return torch.nn.functional.cosine_similarity(seen, checker.concept_embeds[:1]).tolist()
