"""Creates small encoders with random weights, of each family of networks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from factories import make_encoder
from open_clip.coca_model import CoCa
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from lgclip.encoder.base import Encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm


def open_clip_resnet(folder: Path) -> Encoder:
    """Creates an open_clip model whose vision tower is a small ResNet with attention pooling."""
    make_encoder(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = CLIP(**config["model_cfg"])
    # New weights give all images one feature: the last norm of each block is 0, and no statistics are known.
    for part in model.visual.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            part.momentum = None
    with torch.no_grad():
        model.visual.train()(torch.randn(16, 3, 64, 64))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return OpenClip(str(folder))


def open_clip_coca(folder: Path) -> Encoder:
    """Creates a CoCa, whose vision tower gives the features of the patches as well."""
    make_encoder(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    model_config = config["model_cfg"]
    text = model_config["text_cfg"]
    model_config["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text |= {"embed_cls": True, "output_tokens": True}
    model_config["multimodal_cfg"] = {
        "context_length": text["context_length"], "vocab_size": text["vocab_size"], "width": text["width"],
        "heads": 2, "layers": 1, "attn_pooler_heads": 2,
    }  # fmt: skip
    model = CoCa(**model_config)
    model_config["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return OpenClip(str(folder))


def timm_model(architecture: str, folder: Path, **options: Any) -> Encoder:
    """Creates a model of timm with random weights and a classifier."""
    create: Any = timm.create_model
    model = create(architecture, num_classes=5, **options)
    # Batch norms that do something: their statistics start at 0 and 1.
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 64, 64))
    save_for_hf(model.eval(), str(folder), safe_serialization=True, model_args=options)
    return Timm(str(folder), image_size=64)


VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
ENCODERS: dict[str, Callable[[Path], Encoder]] = {
    "tiny": lambda folder: OpenClip("tiny:encoder"),
    "open_clip_resnet": open_clip_resnet,
    "coca": open_clip_coca,
    "timm_vit": lambda folder: timm_model("vit_tiny_patch16_224", folder, **VIT),
    "convnext": lambda folder: timm_model("test_convnext", folder),
    "efficientnet": lambda folder: timm_model("test_efficientnet", folder),
}
