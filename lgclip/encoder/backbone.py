"""Builds networks to train: from plain values, or from an encoder with its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lgclip.encoder.visual_prompt import PromptedTower
from lgclip.encoder.weight_comparison import mismatch, model_shapes, stored_shapes
from lgclip.encoder.weight_files import SAFE, did_you_mean

TIMM = "timm"
TORCHVISION = "torchvision"
OPEN_CLIP = "open_clip"
VISUAL_PROMPT = "visual_prompt"
"""Option of a plan: numbers of blocks and vectors of a visual prompt."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Default input normalization of networks with random weights."""


@dataclass(frozen=True)
class Plan:
    """Describes how to build a network without its weights; stored next to them, so it has only plain values.

    Attributes:
        library: `timm`, `torchvision` or `open_clip`.
        name: The library's name of the network; for open_clip only a display name.
        options: Further constructor arguments; for open_clip the vision tower's config, and numbers of blocks and
            vectors of a visual prompt.
        pooling: How timm pools patches to one feature; None is the model's own.
    """

    library: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pooling: str | None = None

    def body(self) -> nn.Module:
        """Builds the network up to its features, with random weights.

        Raises:
            ValueError: If it cannot be built, or has no linear classifier to remove.
        """
        try:
            return _BUILDERS[self.library](self)
        except (KeyError, TypeError, RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{self.library}:{self.name} cannot be built with {dict(self.options)}: {reason}"
            ) from error


class Tower(NamedTuple):
    """Holds a network up to its features, to be fine-tuned.

    Attributes:
        body: Maps preprocessed pixels to features.
        plan: How to rebuild it.
        image_size: Height and width of its input in pixels.
        mean: Mean of each channel, for pixels in 0 to 1.
        std: Standard deviation of each channel.
        interpolation: `bilinear` or `bicubic`.
    """

    body: nn.Module
    plan: Plan
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class Network(nn.Module):
    """Implements a backbone with one linear layer.

    Args:
        body: Maps pixels to features.
        width: Feature dimension.
        num_classes: Number of logits.
        frozen: Whether the body is frozen: a linear probe, on standardized features.
    """

    def __init__(self, body: nn.Module, width: int, num_classes: int, *, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.body = body.requires_grad_(not frozen)
        self.norm: nn.Module = nn.Identity()
        if frozen:
            # Features of two backbones may differ a hundredfold in scale; one learning rate has to suit them all.
            self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, num_classes)
        # Lightning takes over the mode of each layer as it is, and a tower comes in either.
        self.train()

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        # A batch norm in training mode updates its statistics even if none of its parameters has a gradient.
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        # Parameters without gradients do not save the memory of the activations; this does.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.body(pixels)
        return self.head(self.norm(features))


def split_name(backbone: str) -> tuple[str, str]:
    """Returns library and name of a backbone: `timm:NAME`, `torchvision:NAME`, or NAME, which is timm's.

    Raises:
        ValueError: If the library or the network name is unknown.
    """
    library, colon, name = backbone.partition(":")
    if not colon:
        library = TIMM
        name = backbone
    if library not in (TIMM, TORCHVISION):
        raise ValueError(f"student.backbone={backbone}: write timm:NAME, torchvision:NAME or encoder")
    names = _network_names(library)
    if name not in names:
        raise ValueError(f"student.backbone={backbone}: {library} has no such network{did_you_mean(name, names)}")
    return library, name


def untrained(backbone: str, image_size: int | None) -> Tower:
    """Builds a network with random weights, from torch's random number generator.

    Args:
        backbone: As in `split_name`.
        image_size: Height and width of its input in pixels; None is 224.
    """
    library, name = split_name(backbone)
    size = image_size or 224
    options: dict[str, Any] = {}
    if library == TIMM:
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        # Transformers have a position embedding for each patch; convolutional networks take no such argument.
        if config is not None and config.fixed_input_size:
            options["img_size"] = size
    plan = Plan(library, name, options)
    return Tower(plan.body(), plan, size, IMAGENET_MEAN, IMAGENET_STD, "bilinear")


def weights_file(file: str) -> Path:
    """Returns the path of a weight file for a torchvision network.

    Raises:
        ValueError: If it does not exist, or is not named like a safetensors file.
    """
    path = Path(file).expanduser()
    if not path.is_file() or path.suffix != SAFE:
        raise ValueError(f"student.weights={file}: no such {SAFE} file; torchvision's own weights are pickles")
    return path


def read_into(body: nn.Module, file: str) -> None:
    """Loads a safetensors file into a torchvision network, except for its classifier.

    Raises:
        ValueError: If the file is damaged, or belongs to another network.
    """
    check_fits(body, file)
    try:
        weights = load_file(weights_file(file))
    except SafetensorError as error:
        raise ValueError(f"student.weights={file} is damaged: {error}") from error
    net = body.get_submodule("net")  # below `_MainOutput`, which the file's names do not know
    net.load_state_dict({name: weights[name] for name in net.state_dict()})


def check_fits(body: nn.Module, file: str) -> None:
    """Checks by its header that a safetensors file has the weights of a torchvision network.

    Args:
        body: The network; its weights may be on torch's device `meta`.
        file: The file.

    Raises:
        ValueError: If the file is damaged, or belongs to another network.
    """
    try:
        stored = stored_shapes(weights_file(file))
    except SafetensorError as error:
        raise ValueError(f"student.weights={file} is damaged: {error}") from error
    expected = model_shapes(body.get_submodule("net"))
    # The file's classifier is not used, so what the network does not have is no fault.
    used = {name: shape for name, shape in stored.items() if name in expected}
    if reason := mismatch(expected, used):
        raise ValueError(f"student.weights={file} is of another network: {reason}")


def with_head(tower: Tower, num_classes: int, *, frozen: bool) -> Network:
    """Adds a randomly initialized linear layer to a tower, from torch's random number generator.

    Raises:
        ValueError: If it does not accept images of its size, or does not return one vector per image.
    """
    body = tower.body
    size = tower.image_size
    where = f"{tower.plan.library}:{tower.plan.name} at {size} pixels"
    # The width is found by a call: no attribute holds it in all three libraries. The mode is restored afterwards,
    # since a batch norm cannot be trained on a single image.
    training = body.training
    try:
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{where} does not accept the image: {str(error).partition(chr(10))[0]}") from error
    body.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(f"{where} gives no single vector per image; choose another backbone")
    return Network(body, features.shape[1], num_classes, frozen=frozen)


def _network_names(library: str) -> list[str]:
    if library == TIMM:
        import timm

        return timm.list_models()
    from torchvision import models

    return models.list_models(module=models)  # those of its sub-packages give maps, boxes, films


def _of_timm(plan: Plan) -> nn.Module:
    import timm

    # A folder's config may name the number of classes that the model was trained with.
    options: Any = {**plan.options, "num_classes": 0}
    body: Any = timm.create_model(plan.name, pretrained=False, **options)
    if plan.pooling is not None:
        body.reset_classifier(0, plan.pooling)
    return body


def _of_torchvision(plan: Plan) -> nn.Module:
    from torchvision import models

    body: Any = models.get_model(plan.name, weights=None, **plan.options)
    # torchvision has no common name for the classifier (fc, classifier, head, heads); it is the last linear layer.
    linear = [name for name, part in body.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"student.backbone=torchvision:{plan.name} has no linear classifier; choose another")
    parent, _, child = linear[-1].rpartition(".")
    setattr(body.get_submodule(parent), child, nn.Identity())
    return _MainOutput(body)


def _of_open_clip(plan: Plan) -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg

    options: Any = dict(plan.options)
    # The text tower is built and dropped, so it is as small as can be.
    text = CLIPTextCfg(context_length=4, vocab_size=8, width=64, heads=1, layers=1)
    body: Any = CLIP(options["embed_dim"], options["vision_cfg"], text, quick_gelu=options["quick_gelu"]).visual
    if VISUAL_PROMPT not in options:
        return body
    return PromptedTower(body, torch.zeros(*options[VISUAL_PROMPT], body.conv1.out_channels))


class _MainOutput(nn.Module):
    """Wraps a torchvision network and drops the outputs of its auxiliary classifiers in training mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        out = self.net(pixels)
        # GoogLeNet and Inception return the logits of auxiliary classifiers too, but only in training mode.
        return out if isinstance(out, Tensor) else out[0]


_BUILDERS = {TIMM: _of_timm, TORCHVISION: _of_torchvision, OPEN_CLIP: _of_open_clip}
