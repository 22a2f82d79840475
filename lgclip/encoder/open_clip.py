"""Encodes with models of open_clip: both towers, by name and tag, from a folder, or from the hub."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.backbone import OPEN_CLIP, Plan, Tower
from lgclip.encoder.base import Encoder, LearningTowers, Towers, Transform
from lgclip.encoder.fast_resize import EXACT, build_transform, check_resize
from lgclip.encoder.open_clip_catalogue import LAYOUT, Named
from lgclip.encoder.precision import cast_weights, check_precision, decided, decided_for_training, forward
from lgclip.encoder.weight_checks import check_pass, sample_pixels
from lgclip.encoder.weight_comparison import mismatch, model_shapes, stored_shapes
from lgclip.encoder.weight_files import HUB, checkpoint_content, hub_tokenizer
from lgclip.encoder.weight_sources import Folder, Repository, Source
from lgclip.runtime.hub import HubError, commit_of, hub_errors
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import NOT_AN_INPUT, STANDS_FOR, content_key, key_inputs, local_folder, weights_of

log = logging.getLogger(__name__)

_TOKENIZER = {"clean", "strip_sep_token", "language"}
"""Allowed tokenizer keys of a model's config; others, such as `trust_remote_code`, would reach transformers."""

_LEARNABLE = "choose another encoder, such as vit_b16 or tiny"


@dataclass(frozen=True)
class OpenClip(Encoder):
    """Encodes with both towers of an open_clip model.

    Args:
        model: `tiny:NAME`, a folder with an open_clip_config.json, `hf-hub:OWNER/NAME`, or the name of
            an architecture.
        pretrained: Tag of the architecture's weights. None for a folder or a repository, which has
            its own. With a checkpoint it says how that was trained: activation and preprocessing.
        revision: Branch, tag or commit of the hub repository that the weights are in; None is `main`.
        checkpoint: Local weights of the named architecture, used instead of the tag's.
        allow_pickle: Whether weights may be a pickle. It is loaded with `weights_only`, and runs no code.
        precision: `fp32`, `bf16` or `fp16`; `auto` is bf16 on hardware that multiplies in it, fp32
            elsewhere.
        resize: `exact` preprocesses with Pillow, as the tower was trained; `fast` resizes tensors of bytes, in
            which some pixels differ by a gray level.
        batch_size: Number of views per forward pass.

    Raises:
        ValueError: If a value is out of range, names a folder, architecture, tag or file that does not
            exist, or the weights were trained with another activation than the architecture's.
    """

    key_name: ClassVar[str] = "OpenClip"

    has_text = True

    model: str = field(metadata={STANDS_FOR: lambda part: part.stands_for()})
    pretrained: str | None = None
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    checkpoint: str | None = field(
        default=None, metadata={STANDS_FOR: lambda part: checkpoint_content(part.checkpoint)}
    )
    allow_pickle: bool = field(default=False, metadata=NOT_AN_INPUT)
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    resize: str = EXACT
    batch_size: int = field(default=128, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size={self.batch_size}: it must be at least 1")
        check_precision(self.precision)
        check_resize(self.resize)
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

    def download(self) -> None:
        self.inputs()  # its config
        self._source.weights(self.allow_pickle)
        self._tokenizer()  # may be in another repository

    def on(self, device: torch.device) -> "OpenClip":
        return replace(self, precision=decided(self.precision, device))

    def inputs(self) -> dict[str, object]:
        fields = key_inputs(self)
        if self.resize == EXACT:
            del fields["resize"]
        inputs: dict[str, object] = {"encoder": fields}
        # The package's own list may change; a folder or a repository holds its preprocessing itself.
        if isinstance(self._source, Named):
            inputs["preprocessing"] = self._preprocessing()
        inputs["schema"] = STORE_SCHEMA
        return inputs

    def stands_for(self) -> str | dict[str, str]:
        """Returns the model's identity in a key: a folder's content, or names and the hub's commits."""
        source = self._source
        identity = source.stands_for()
        # The hash of a folder covers its tokenizer too.
        if isinstance(source, Folder):
            return identity
        if isinstance(identity, str):
            identity = {"repository": identity}
        # A config may name the tokenizer or the text tower of another repository; its commit is then an input as well.
        text = self._config("model_cfg")["text_cfg"]
        for part in ("hf_tokenizer_name", "hf_model_name"):
            if name := text.get(part):
                identity = {**identity, part: weights_of(name)}
        return identity

    def _config(self, section: str) -> dict[str, Any]:
        config = self._source.config()
        if "vision_cfg" not in config.get("model_cfg", {}):
            raise ValueError(f"encoder.model={self.model}: its {LAYOUT.config} has no model_cfg with a vision_cfg")
        return config.get(section, {})

    def _preprocessing(self) -> dict[str, Any]:
        """Returns the arguments of open_clip's evaluation transform. As in open_clip, the size is the tower's own."""
        from open_clip.transform import PreprocessCfg

        # open_clip's list has more in these entries than preprocessing: the address of the weights, for one.
        fields = PreprocessCfg.__dataclass_fields__
        chosen = {name: value for name, value in self._config("preprocess_cfg").items() if name in fields}
        return chosen | {"size": self._config("model_cfg")["vision_cfg"].get("image_size", 224)}

    def transform(self, *, squash: bool = False) -> Transform:
        return build_transform(open_clip_transform(self._preprocessing(), squash=squash), self.resize)

    def preprocessing(self) -> dict[str, Any]:
        return {"library": OPEN_CLIP, "arguments": self._preprocessing(), "resize": self.resize}

    def tower(self) -> Tower:
        from open_clip.transform import PreprocessCfg

        config = self._config("model_cfg")
        preprocessing = PreprocessCfg(**self._preprocessing())
        options = {
            "embed_dim": config["embed_dim"],
            "vision_cfg": config["vision_cfg"] | {"timm_model_pretrained": False},  # its weights are the student's
            "quick_gelu": config.get("quick_gelu", False),
        }
        size = preprocessing.size
        if not isinstance(size, int):
            size = size[0]
        # The last part of the name alone: the plan is stored with the student, and no path of this machine should be.
        plan = Plan(OPEN_CLIP, self.model.rpartition("/")[2], options)
        return Tower(
            self._model().visual,
            plan,
            size,
            tuple(preprocessing.mean),
            tuple(preprocessing.std),
            preprocessing.interpolation,
        )

    def load(self, device: torch.device) -> Towers:
        return _OpenClipTowers(self._model(), self._tokenizer(), device, decided(self.precision, device))

    def prompt_key(self, *kinds: str) -> str:
        config = self._config("model_cfg")
        text = config["text_cfg"]
        vision = config["vision_cfg"]
        # A prompt is put in place of the embeddings of words, and is read at the position of the last word (CoOp).
        # Neither works where another library embeds the words, or where an appended token is what is read (CoCa).
        problem = ""
        if text.get("hf_model_name"):
            problem = "is a model of transformers"
        elif text.get("embed_cls"):
            problem = "reads a class token of its own"
        if problem:
            raise ValueError(
                f"encoder.model={self.model}: its text tower {problem}, which takes no prompt; {_LEARNABLE}"
            )
        # In open_clip's configs a list of layers is a ResNet: blocks of each stage.
        if "visual" in kinds and (vision.get("timm_model_name") or isinstance(vision.get("layers"), list)):
            network = vision.get("timm_model_name") or "a ResNet"
            raise ValueError(
                f"encoder.model={self.model}: its vision tower is {network}, and a visual prompt goes into open_clip's "
                f"own ViT; {_LEARNABLE}, or text prompts only"
            )
        # One precision for all: a prompt that was learned in bf16 on a GPU may be used in fp32 on a CPU.
        return content_key(replace(self, precision="fp32").inputs())

    def learning_towers(self, device: torch.device, *kinds: str) -> LearningTowers:
        key = self.prompt_key(*kinds)  # refused before the weights are read
        model = self._model().to(device).eval().requires_grad_(False)
        # On a CPU in fp32: gradients through weights in bf16 are too coarse.
        precision = decided_for_training(self.precision, device)
        scale = float(model.logit_scale.exp())  # the parameter is the logarithm of 1 / temperature
        return LearningTowers(model, self._tokenizer(), device, precision, scale, key, self.model)

    def width(self) -> int:
        return int(self._config("model_cfg")["embed_dim"])

    def check_weights(self) -> None:
        self._tokenizer()
        pixels = sample_pixels(self)
        # The same model without weights: names and shapes are compared, and a pass computes shapes alone.
        try:
            blank = self._blank_model()
            fits = mismatch(model_shapes(blank), stored_shapes(self._source.weights(self.allow_pickle))) is None
            if fits:
                with torch.inference_mode(), torch.device("meta"):
                    blank.encode_image(pixels.to("meta"))
                return
        except HubError:
            raise
        except Exception as error:  # open_clip may convert the file, and not every network runs without weights
            log.debug("%s: the weights are loaded to check them: %r", self.model, error)
        check_pass(self, pixels)

    def _blank_model(self) -> Any:
        """Returns the model without weights or memory for them."""
        import open_clip

        file = self._source.weights(self.allow_pickle)
        name = self.model if isinstance(self._source, Named) else f"local-dir:{file.parent}"
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it warns that there are no weights
        try:
            with torch.device("meta"):
                return open_clip.create_model(
                    name, None, load_weights=False, precision="fp32", device="meta", pretrained_text=False
                ).eval()
        finally:
            logging.disable(disabled)

    def _model(self) -> Any:
        """Returns the model on the CPU, in fp32."""
        import open_clip

        file = self._source.weights(self.allow_pickle)
        text_tower = self._config("model_cfg")["text_cfg"].get("hf_model_name")  # its config alone is read
        # The file is downloaded before, at the commit that is in the key; open_clip itself would take the newest one.
        name = f"local-dir:{file.parent}"
        pretrained: str | None = None
        if isinstance(self._source, Named):
            name = self.model
            pretrained = str(file)
        try:
            with hub_errors(text_tower or self.model):
                return open_clip.create_model(name, pretrained, precision="fp32", weights_only=True)
        except HubError:
            raise
        except Exception as error:  # a file that does not fit fails in as many ways as there are architectures
            reason = str(error).partition("\n")[0]
            # Of the others the first line names what is wrong.
            if "loading state_dict" in reason:
                reason = self._mismatch(file) or reason
            raise ValueError(f"encoder.model={self.model} cannot be built from {file}: {reason}") from error

    def _mismatch(self, file: Path) -> str | None:
        """Describes how the weights in a file differ from the model's; None if that is unknown."""
        try:
            return mismatch(model_shapes(self._blank_model()), stored_shapes(file))
        except Exception:
            return None

    def _tokenizer(self) -> Any:
        """Returns the text tower's tokenizer, at the commit that is in the key."""
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        config = self._config("model_cfg")["text_cfg"]
        settings = config.get("tokenizer_kwargs") or {}
        if unknown := sorted(settings.keys() - _TOKENIZER):
            raise ValueError(
                f"encoder.model={self.model}: its {LAYOUT.config} sets {', '.join(unknown)} of the tokenizer, which "
                f"could have it run code; only {', '.join(sorted(_TOKENIZER))} are taken"
            )
        options = {"context_length": config.get("context_length", 77), **settings}
        name = config.get("hf_tokenizer_name")
        if not name:
            return SimpleTokenizer(**options)
        if config.get("tokenizer_mode"):
            options["tokenizer_mode"] = config["tokenizer_mode"]
        source = self._source
        # A folder brings its tokenizer, which its hash covers: the name in its config is not looked up.
        folder = source.path if isinstance(source, Folder) else hub_tokenizer(name, commit_of(name))
        return HFTokenizer(str(folder), **options, trust_remote_code=False)


def open_clip_transform(arguments: Mapping[str, Any], *, squash: bool) -> Transform:
    """Returns open_clip's evaluation transform.

    Args:
        arguments: Those of its `PreprocessCfg`.
        squash: Whether to resize both sides directly to the input size.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    chosen = dict(arguments)
    if squash:
        chosen["resize_mode"] = "squash"
    transform: Any = image_transform_v2(PreprocessCfg(**chosen), is_train=False)
    return transform


class _OpenClipTowers:
    def __init__(self, model: Any, tokenizer: Any, device: torch.device, precision: str) -> None:
        self._model: Any = cast_weights(model, precision, device)
        self._tokenizer = tokenizer
        self._device = device
        self._precision = precision

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

    def _unit(self, encode: Any, batch: Tensor) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            features = forward(encode, batch, self._precision, self._device)
            # Outside of the arithmetic: the length of a vector in bf16 is right to two or three digits only, and the
            # store refuses features that are not of unit length.
            return F.normalize(features.float(), dim=-1)
