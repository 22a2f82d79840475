"""Models of open_clip: both towers, by name and tag, from a folder, or from the hub."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.backbone import OPEN_CLIP, Plan, Tower
from lgclip.encoder.base import Encoder, LearningTowers, Towers, Transform
from lgclip.encoder.catalogue import LAYOUT, Named
from lgclip.encoder.files import HUB, checkpoint_content, hub_tokenizer
from lgclip.encoder.precision import arithmetic, check_precision, decided
from lgclip.encoder.sources import Folder, Repository, Source
from lgclip.hub import HubError, commit_of, hub_errors
from lgclip.identity import NOT_AN_INPUT, SCHEMA, STANDS_FOR, inputs_of, key_of, local_folder, weights_of

_TOKENIZER = {"clean", "strip_sep_token", "language"}
"""What a model's config may say of its tokenizer; transformers would be told the rest, `trust_remote_code` too."""

_LEARNABLE = "choose another encoder, such as vit_b16 or tiny"


@dataclass(frozen=True)
class OpenClip(Encoder):
    """A model of open_clip with both towers.

    Args:
        model: `tiny:NAME`, a folder with an open_clip_config.json, `hf-hub:OWNER/NAME`, or the name of
            an architecture.
        pretrained: Tag of the architecture's weights. None for a folder or a repository, which bring
            their own. Beside a checkpoint it says how that was trained: activation and preprocessing.
        revision: Branch, tag or commit of the hub repository that the weights are in; None is `main`.
        checkpoint: Weights of the named architecture on this machine, in place of the tag's.
        allow_pickle: Whether weights may be a pickle. It is read as weights only, and runs no code.
        precision: `fp32`, `bf16` or `fp16`; `auto` is bf16 on a GPU and fp32 elsewhere.
        batch_size: Views encoded at once.

    Raises:
        ValueError: If a value is out of range, names a folder, architecture, tag or file that is not
            there, or the weights were trained with another activation than the architecture's.
    """

    has_text = True

    model: str = field(metadata={STANDS_FOR: lambda part: part.stands_for()})
    pretrained: str | None = None
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    checkpoint: str | None = field(
        default=None, metadata={STANDS_FOR: lambda part: checkpoint_content(part.checkpoint)}
    )
    allow_pickle: bool = field(default=False, metadata=NOT_AN_INPUT)
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    batch_size: int = field(default=128, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size={self.batch_size}: it must be at least 1")
        check_precision(self.precision)
        source = self._source
        if isinstance(source, Named):
            source.check(self.allow_pickle)
        elif self.pretrained is not None or self.checkpoint is not None:
            raise ValueError(
                f"encoder.model={self.model} brings its own weights: "
                "encoder.pretrained and encoder.checkpoint are for a named architecture, leave them null"
            )

    @property
    def _source(self) -> Source:
        folder = local_folder(self.model)
        if folder is not None:
            return Folder(folder, LAYOUT)
        if self.model.startswith(HUB):
            return Repository(self.model.removeprefix(HUB), self.revision, LAYOUT)
        return Named(self.model, self.pretrained, self.revision, self.checkpoint)

    def repositories(self) -> list[tuple[str, str | None]]:
        return self._source.repositories()

    def on(self, device: torch.device) -> "OpenClip":
        return replace(self, precision=decided(self.precision, device))

    def inputs(self) -> dict[str, object]:
        # The package's own list may change; a folder or a repository holds its preprocessing itself.
        listed = {"preprocessing": self._preprocessing()} if isinstance(self._source, Named) else {}
        return {"encoder": inputs_of(self), **listed, "schema": SCHEMA}

    def stands_for(self) -> str | dict[str, str]:
        """What stands for the model in a key: a folder's content, or names and the hub's commits."""
        source = self._source
        found = source.stands_for()
        if isinstance(source, Folder):
            return found
        found = {"repository": found} if isinstance(found, str) else found
        text = self._config("model_cfg")["text_cfg"]
        names = {part: text.get(part) for part in ("hf_tokenizer_name", "hf_model_name")}
        return found | {part: weights_of(name) for part, name in names.items() if name}

    def _config(self, section: str) -> dict[str, Any]:
        found = self._source.config()
        if "vision_cfg" not in found.get("model_cfg", {}):
            raise ValueError(f"encoder.model={self.model}: its {LAYOUT.config} has no model_cfg with a vision_cfg")
        return found.get(section, {})

    def _preprocessing(self) -> dict[str, Any]:
        """Arguments of open_clip's evaluation transform. The size is the tower's own, as it is there."""
        from open_clip.transform import PreprocessCfg

        known = PreprocessCfg.__dataclass_fields__
        chosen = {name: value for name, value in self._config("preprocess_cfg").items() if name in known}
        return chosen | {"size": self._config("model_cfg")["vision_cfg"].get("image_size", 224)}

    def transform(self, *, squash: bool = False) -> Transform:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        chosen = self._preprocessing()
        if squash:
            chosen["resize_mode"] = "squash"
        transform: Any = image_transform_v2(PreprocessCfg(**chosen), is_train=False)
        return transform

    def tower(self) -> Tower:
        from open_clip.transform import PreprocessCfg

        config, read = self._config("model_cfg"), PreprocessCfg(**self._preprocessing())
        options = {
            "embed_dim": config["embed_dim"],
            "vision_cfg": config["vision_cfg"] | {"timm_model_pretrained": False},  # its weights are the student's
            "quick_gelu": config.get("quick_gelu", False),
        }
        size = read.size if isinstance(read.size, int) else read.size[0]
        plan = Plan(OPEN_CLIP, self.model.rpartition("/")[2], options)
        return Tower(self._model().visual, plan, size, tuple(read.mean), tuple(read.std), read.interpolation)

    def load(self, device: torch.device) -> Towers:
        return _OpenClipTowers(self._model().to(device).eval(), self._tokenizer(), device, decided(self.precision))

    def prompt_key(self, *kinds: str) -> str:
        config = self._config("model_cfg")
        text, vision = config["text_cfg"], config["vision_cfg"]
        if text.get("hf_model_name") or text.get("embed_cls"):
            what = "is a model of transformers" if text.get("hf_model_name") else "reads a class token of its own"
            raise ValueError(f"encoder.model={self.model}: its text tower {what}, which takes no prompt; {_LEARNABLE}")
        if "visual" in kinds and (vision.get("timm_model_name") or isinstance(vision.get("layers"), list)):
            what = vision.get("timm_model_name") or "a ResNet"
            raise ValueError(
                f"encoder.model={self.model}: its vision tower is {what}, and a visual prompt goes into open_clip's "
                f"own ViT; {_LEARNABLE}, or prompts of text alone"
            )
        return key_of(replace(self, precision="fp32").inputs())

    def learning_towers(self, device: torch.device, *kinds: str) -> LearningTowers:
        key = self.prompt_key(*kinds)  # refused before the weights are read
        model = self._model().to(device).eval().requires_grad_(False)
        precision, scale = decided(self.precision, device), float(model.logit_scale.exp())
        return LearningTowers(model, self._tokenizer(), device, precision, scale, key, self.model)

    def _model(self) -> Any:
        """The model on the CPU, in fp32."""
        import open_clip

        file = self._source.weights(self.allow_pickle)
        text_tower = self._config("model_cfg")["text_cfg"].get("hf_model_name")  # its config alone is read
        named = isinstance(self._source, Named)
        place = (self.model, str(file)) if named else (f"local-dir:{file.parent}", None)
        try:
            with hub_errors(text_tower or self.model):
                return open_clip.create_model(*place, precision="fp32", weights_only=True)
        except HubError:
            raise
        except Exception as error:  # a file that does not fit fails in as many ways as there are architectures
            said = str(error).partition("\n")[0]
            raise ValueError(f"encoder.model={self.model} cannot be built from {file}: {said}") from error

    def _tokenizer(self) -> Any:
        """The text tower's tokenizer, at the commit that is in the key."""
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        config = self._config("model_cfg")["text_cfg"]
        said = config.get("tokenizer_kwargs") or {}
        if strange := sorted(said.keys() - _TOKENIZER):
            raise ValueError(
                f"encoder.model={self.model}: its {LAYOUT.config} sets {', '.join(strange)} of the tokenizer, which "
                f"could have it run code; only {', '.join(sorted(_TOKENIZER))} are taken"
            )
        options = {"context_length": config.get("context_length", 77), **said}
        name = config.get("hf_tokenizer_name")
        if not name:
            return SimpleTokenizer(**options)
        if config.get("tokenizer_mode"):
            options["tokenizer_mode"] = config["tokenizer_mode"]
        source = self._source
        place = source.path if isinstance(source, Folder) else hub_tokenizer(name, commit_of(name))
        return HFTokenizer(str(place), **options, trust_remote_code=False)


class _OpenClipTowers:
    def __init__(self, model: Any, tokenizer: Any, device: torch.device, precision: str) -> None:
        self._model, self._tokenizer, self._device, self._precision = model, tokenizer, device, precision

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self._unit(self._model.encode_image, pixels)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        return self._unit(self._model.encode_text, self._tokenizer(list(sentences)))

    def parameters(self) -> dict[str, int]:
        sizes = {name: parameter.numel() for name, parameter in self._model.named_parameters()}
        image = sum(size for name, size in sizes.items() if name.startswith("visual."))
        # Neither the temperature nor what writes captions takes part in a sentence's features.
        apart = sum(size for name, size in sizes.items() if name.startswith(("logit_", "text_decoder.")))
        return {"image": image, "text": sum(sizes.values()) - image - apart}

    def _unit(self, encode: Any, given: Tensor) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            with arithmetic(self._precision, self._device):
                features = encode(given.to(self._device))
            return F.normalize(features.float(), dim=-1)
