"""Encodes with vision towers of timm, most of them trained without any text."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.backbone import TIMM, Plan, Tower
from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.fast_resize import EXACT, build_transform, check_resize
from lgclip.encoder.precision import cast_weights, check_precision, decided, forward
from lgclip.encoder.timm_catalogue import LAYOUT, Named
from lgclip.encoder.weight_checks import check_pass, sample_pixels
from lgclip.encoder.weight_comparison import Shapes, mismatch, model_shapes, stored_shapes
from lgclip.encoder.weight_files import HUB, checkpoint_content
from lgclip.encoder.weight_sources import Folder, Repository, Source
from lgclip.runtime.hub import HubError
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import NOT_AN_INPUT, STANDS_FOR, key_inputs, local_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timm(Encoder):
    """Encodes with the pooled features of a timm vision tower; it has no text tower.

    Args:
        model: `ARCHITECTURE.TAG` or `ARCHITECTURE` as in timm's list, a folder with a config.json in
            timm's layout, or `hf-hub:OWNER/NAME`.
        pooling: How patch features are pooled: `token` is the class token, `avg` the mean
            of the patches, others are timm's. None is the model's own.
        image_size: Height and width of the input in pixels; position embeddings are resampled to it.
            None is the model's own.
        revision: Branch, tag or commit of the hub repository that the weights are in; None is `main`.
        checkpoint: Local weights of the named architecture, used instead of the hub's; or `package:NAME`, those of
            an installed Python package (see `packaged_weights`).
        allow_pickle: Whether weights may be a pickle. It is loaded with `weights_only`, and runs no code.
        precision: `fp32`, `bf16` or `fp16`; `auto` is bf16 on hardware that multiplies in it, fp32
            elsewhere.
        resize: `exact` preprocesses with Pillow, as the tower was trained; `fast` resizes tensors of bytes, in
            which some pixels differ by a gray level.
        batch_size: Number of views per forward pass.

    Raises:
        ValueError: If a value is out of range or names a folder, model or file that does not exist.
    """

    key_name: ClassVar[str] = "Timm"

    has_text = False

    model: str = field(metadata={STANDS_FOR: lambda part: part.stands_for()})
    pooling: str | None = None
    image_size: int | None = None
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
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"encoder.image_size={self.image_size}: it must be at least 1 pixel, or null")
        if self.pooling is not None and not self.pooling:
            raise ValueError("encoder.pooling='': name one, such as token or avg, or give null")
        check_precision(self.precision)
        check_resize(self.resize)
        source = self._source
        if isinstance(source, Named):
            source.check(self.allow_pickle)
        elif self.checkpoint is not None:
            raise ValueError(
                f"encoder.model={self.model} brings its own weights: "
                "encoder.checkpoint is for a named architecture, leave it null"
            )

    @property
    def _source(self) -> Source:
        folder = local_folder(self.model)
        if folder is not None:
            return Folder(folder, LAYOUT)
        if self.model.startswith(HUB):
            return Repository(self.model.removeprefix(HUB), self.revision, LAYOUT)
        return Named(self.model, self.revision, self.checkpoint)

    def repositories(self) -> list[tuple[str, str | None]]:
        return self._source.repositories()

    def download(self) -> None:
        self.inputs()  # its config
        self._source.weights(self.allow_pickle)

    def on(self, device: torch.device) -> "Timm":
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
        """Returns the model's identity in a key: a folder's content, or names and the hub's commit."""
        return self._source.stands_for()

    def _described(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Returns architecture, timm's config of its weights, and constructor arguments."""
        from timm.models import PretrainedCfg

        config = self._source.config()
        if "architecture" not in config:
            raise ValueError(f"encoder.model={self.model}: its {LAYOUT.config} names no architecture of timm")
        weights = config.get("pretrained_cfg", config)  # older files keep all of it at the top
        # A file by a newer release of timm may have fields that this one does not know.
        pretrained_config = {
            name: value for name, value in weights.items() if name in PretrainedCfg.__dataclass_fields__
        }
        options = dict(config.get("model_args") or {})
        if "img_size" in options:  # then the tower was built for another size than its architecture's
            size = options["img_size"]
            if isinstance(size, int):
                size = (size, size)
            pretrained_config["input_size"] = (3, *size)
        return config["architecture"], pretrained_config, options

    def _preprocessing(self) -> dict[str, Any]:
        """Returns the arguments of timm's evaluation transform."""
        from timm.data.config import resolve_data_config

        size: dict[str, Any] | None = None
        if self.image_size is not None:
            size = {"input_size": (3, self.image_size, self.image_size)}
        return resolve_data_config(size, pretrained_cfg=self._described()[1])

    def transform(self, *, squash: bool = False) -> Transform:
        return build_transform(timm_transform(self._preprocessing(), squash=squash), self.resize)

    def preprocessing(self) -> dict[str, Any]:
        return {"library": TIMM, "arguments": self._preprocessing(), "resize": self.resize}

    def tower(self) -> Tower:
        name, weights, options = self._described()
        if self.image_size is not None and weights.get("fixed_input_size"):
            options["img_size"] = self.image_size
        model = self._model()
        preprocessing = self._preprocessing()
        # Not `reset_classifier(0, None)`: where the default is another one, such as `avg` of a ResNet, None means that
        # nothing is pooled.
        if self.pooling:
            model.reset_classifier(0, self.pooling)
        else:
            model.reset_classifier(0)
        plan = Plan(TIMM, name, options, self.pooling)
        return Tower(
            model,
            plan,
            preprocessing["input_size"][-1],
            tuple(preprocessing["mean"]),
            tuple(preprocessing["std"]),
            preprocessing["interpolation"],
        )

    def load(self, device: torch.device) -> Towers:
        return _TimmTower(self._model(), device, decided(self.precision, device))

    def width(self) -> int:
        # Of the network without weights, and without a classifier, whose size only the weights tell.
        try:
            blank = self._blank_model({})
            return self._blank_features(blank, sample_pixels(self)).shape[1]
        except Exception as error:  # not every network runs without weights
            log.debug("%s: the weights are loaded to learn the feature dimension: %r", self.model, error)
        return super().width()

    def check_weights(self) -> None:
        pixels = sample_pixels(self)
        # The same model without weights: names and shapes are compared, and a pass computes shapes alone.
        try:
            stored = self._stored_shapes(self._source.weights(self.allow_pickle))
            blank = self._blank_model(stored)
            if mismatch(model_shapes(blank), stored) is None:
                self._blank_features(blank, pixels)
                return
        except HubError:
            raise
        except Exception as error:  # timm may convert the file, and not every network runs without weights
            log.debug("%s: the weights are loaded to check them: %r", self.model, error)
        check_pass(self, pixels)

    def _blank_model(self, stored: Shapes) -> Any:
        """Returns the model without weights or memory for them, with as many classes as a file has."""
        import timm

        name, weights, options = self._described()
        if self.image_size is not None and weights.get("fixed_input_size"):
            options["img_size"] = self.image_size
        classifier = weights.get("classifier")
        if classifier is not None and not isinstance(classifier, str):
            classifier = classifier[0]
        # Also behind a prefix, so that a file in which only the names differ is compared with the model as it was.
        sizes = [shape[0] for weight, shape in stored.items() if f".{weight}".endswith(f".{classifier}.weight")]
        options["num_classes"] = sizes[0] if sizes else 0
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **options).eval()

    def _blank_features(self, blank: Any, pixels: Tensor) -> Tensor:
        """Encodes pixels with a model without weights: the shapes alone are computed."""
        with torch.inference_mode(), torch.device("meta"):
            # After a comparison of names: another pooling moves the last norm, as for the weights themselves.
            if self.pooling is not None:
                blank.reset_classifier(0, self.pooling)
            return blank.forward_head(blank.forward_features(pixels.to("meta")), pre_logits=True)

    def _stored_shapes(self, file: Path) -> Shapes:
        """Returns the shape of each tensor in the file of the weights, by the model's names."""
        names = self._source.names()
        return {names.get(name, name): shape for name, shape in stored_shapes(file).items()}

    def _mismatch(self, file: Path) -> str | None:
        """Describes how the weights in a file differ from the model's; None if that is unknown."""
        try:
            stored = self._stored_shapes(file)
            return mismatch(model_shapes(self._blank_model(stored)), stored)
        except Exception:
            return None

    def _model(self) -> Any:
        """Returns the model on the CPU, in fp32, with all of its weights from the file."""
        import timm
        from timm.models import load_state_dict

        file = self._source.weights(self.allow_pickle)
        name, weights, options = self._described()
        if self.image_size is not None and weights.get("fixed_input_size"):
            options["img_size"] = self.image_size
        try:
            names = self._source.names()
            stored = load_state_dict(str(file), weights_only=True)
            state = {names.get(name, name): tensor for name, tensor in stored.items()}
            # With a classifier as large as the file's timm loads strictly. Where they differ, it
            # would pass over whatever else is missing.
            classes = _classes(state, weights.get("classifier"))
            # Names the weights that are in memory as the only source, so that timm neither queries the hub nor drops
            # the first class of weights that were trained with a background class.
            local = {"state_dict": state, "file": None, "source": None, "num_classes": classes, "label_offset": None}
            options["num_classes"] = classes
            model: Any = timm.create_model(name, pretrained=True, pretrained_cfg=weights | local, **options)
            if self.pooling is not None:
                model.reset_classifier(0, self.pooling)
        except Exception as error:  # what does not fit fails in as many ways as timm has architectures
            reason = str(error).partition("\n")[0]
            # Of the others the first line names what is wrong.
            if "loading state_dict" in reason:
                reason = self._mismatch(file) or reason
            fields = f"pooling={self.pooling} image_size={self.image_size}"
            raise ValueError(
                f"encoder.model={self.model} cannot be built from {file.name}, {fields}: {reason}"
            ) from error
        model.pretrained_cfg = model.default_cfg = {}  # they hold the weights a second time
        return model


def timm_transform(arguments: Mapping[str, Any], *, squash: bool) -> Transform:
    """Returns timm's evaluation transform.

    Args:
        arguments: Those of its `create_transform`.
        squash: Whether to resize both sides directly to the input size.
    """
    from timm.data.transforms_factory import create_transform

    chosen = dict(arguments)
    if squash:
        # With a crop fraction below 1 timm resizes to a larger size and cuts out the center after all.
        chosen |= {"crop_mode": "squash", "crop_pct": 1.0}
    transform: Any = create_transform(**chosen, is_training=False)
    return transform


def _classes(state: dict[str, Any], classifier: str | Sequence[str] | None) -> int:
    """Returns the number of classes of the classifier in a state dict; 0 if there is none."""
    # Distilled transformers have two heads, for the class token and for the distillation token, of equal size.
    if classifier is not None and not isinstance(classifier, str):
        classifier = classifier[0]
    weight = state.get(f"{classifier}.weight")
    if weight is None:
        return 0
    return len(weight)


class _TimmTower:
    def __init__(self, model: Any, device: torch.device, precision: str) -> None:
        self._model: Any = cast_weights(model, precision, device)
        self._device = device
        self._precision = precision

    def images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with torch.inference_mode():
            features = forward(self._features, pixels, self._precision, self._device)
            return F.normalize(features.float(), dim=-1)

    def _features(self, pixels: Tensor) -> Tensor:
        # Up to the classifier, which stays on the model because timm loads strictly only with it.
        return self._model.forward_head(self._model.forward_features(pixels), pre_logits=True)

    def texts(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        raise ValueError("this encoder has no text tower")

    def parameters(self) -> dict[str, int]:
        count = sum(parameter.numel() for parameter in self._model.parameters())
        # The classifier is in memory but takes no part in the features; distilled transformers have two.
        classifier = self._model.get_classifier()
        heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
        for head in heads:
            count -= sum(parameter.numel() for parameter in head.parameters())
        return {"image": count}
