"""Models of open_clip."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.identity import NOT_AN_INPUT, SCHEMA, WEIGHTS, inputs_of, local_folder


@dataclass(frozen=True)
class OpenClip(Encoder):
    """A model of open_clip with both towers, in fp32.

    Args:
        model: `tiny:NAME`, a folder with an open_clip_config.json, or the name of an architecture.
        pretrained: Tag of the architecture's weights; None for a folder, which brings its own.
        batch_size: Views encoded at once.

    Raises:
        ValueError: If the batch size is below 1 or `model` names a folder that is not there.
    """

    has_text = True

    model: str = field(metadata=WEIGHTS)
    pretrained: str | None = None
    batch_size: int = field(default=128, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size={self.batch_size}: it must be at least 1")
        local_folder(self.model)

    def inputs(self) -> dict[str, object]:
        return {"encoder": inputs_of(self), "schema": SCHEMA}

    @property
    def _name(self) -> str:
        folder = local_folder(self.model)
        return self.model if folder is None else f"local-dir:{folder}"

    def transform(self) -> Transform:
        from open_clip import get_model_config, get_pretrained_cfg
        from open_clip.transform import PreprocessCfg, image_transform_v2

        folder = local_folder(self.model)
        if folder is None:
            found = get_pretrained_cfg(self.model, self.pretrained or "")
            size = (get_model_config(self.model) or {})["vision_cfg"]["image_size"]
        else:
            config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
            found, size = config.get("preprocess_cfg", {}), config["model_cfg"]["vision_cfg"]["image_size"]
        known = PreprocessCfg.__dataclass_fields__
        chosen = {name: value for name, value in found.items() if name in known}
        transform: Any = image_transform_v2(PreprocessCfg(**{"size": size, **chosen}), is_train=False)
        return transform

    def load(self, device: torch.device) -> Towers:
        import open_clip

        model = open_clip.create_model(self._name, self.pretrained, precision="fp32", device=device)
        return _OpenClipTowers(model.eval(), open_clip.get_tokenizer(self._name), device)


class _OpenClipTowers:
    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            return self._model.encode_image(pixels.to(self._device), normalize=True).float()

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            return self._model.encode_text(self._tokenizer(list(sentences)).to(self._device), normalize=True).float()
