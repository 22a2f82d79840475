"""Networks to be trained: built anew from plain values, or taken from an encoder with its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lgclip.encoder.files import SAFE, did_you_mean

TIMM, TORCHVISION, OPEN_CLIP = "timm", "torchvision", "open_clip"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What nearly every network that starts from nothing is fed by."""


@dataclass(frozen=True)
class Plan:
    """How a network is built, without its weights; only plain values, so it is kept beside them.

    Attributes:
        library: `timm`, `torchvision` or `open_clip`.
        name: The library's name for it; for open_clip only what it is called.
        options: What its constructor takes besides; of open_clip the vision tower's config.
        pooling: How timm makes one feature of many patches; None is the model's own.
    """

    library: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pooling: str | None = None

    def body(self) -> nn.Module:
        """The network up to its features, with random weights.

        Raises:
            ValueError: If it cannot be built, or has no linear classifier to take off.
        """
        try:
            return _BUILDERS[self.library](self)
        except (KeyError, TypeError, RuntimeError, AssertionError) as error:
            said = str(error).partition("\n")[0]
            raise ValueError(f"{self.library}:{self.name} cannot be built with {dict(self.options)}: {said}") from error


class Tower(NamedTuple):
    """A network up to its features, to be trained further.

    Attributes:
        body: Preprocessed pixels to features.
        plan: How it is built anew.
        image_size: Height and width of its input in pixels.
        mean: What is subtracted of each channel, of pixels in 0 to 1.
        std: What each channel is then divided by.
        interpolation: `bilinear` or `bicubic`.
    """

    body: nn.Module
    plan: Plan
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class Network(nn.Module):
    """Features and one linear layer on them.

    Args:
        body: Pixels to features.
        width: How many features there are.
        num_classes: How many logits.
        frozen: Whether the body stays as it is: a linear probe, on features brought to one scale.
    """

    def __init__(self, body: nn.Module, width: int, num_classes: int, *, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.body = body.requires_grad_(not frozen)
        self.norm = nn.LayerNorm(width, elementwise_affine=False) if frozen else nn.Identity()
        self.head = nn.Linear(width, num_classes)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        if self.frozen:  # its batch statistics stay, too
            self.body.eval()
        return self

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.body(pixels)
        return self.head(self.norm(features))


def split_name(backbone: str) -> tuple[str, str]:
    """Library and name of a backbone: `timm:NAME`, `torchvision:NAME`, or NAME, which is timm's.

    Raises:
        ValueError: If the library, or its name for the network, is not known.
    """
    library, colon, name = backbone.partition(":")
    library, name = (library, name) if colon else (TIMM, backbone)
    if library not in (TIMM, TORCHVISION):
        raise ValueError(f"student.backbone={backbone}: write timm:NAME, torchvision:NAME or encoder")
    known = _known(library)
    if name not in known:
        raise ValueError(f"student.backbone={backbone}: {library} has no such network{did_you_mean(name, known)}")
    return library, name


def untrained(backbone: str, image_size: int | None) -> Tower:
    """A network with random weights, from torch's random numbers.

    Args:
        backbone: As of `split_name`.
        image_size: Height and width of its input in pixels; None is 224.
    """
    library, name = split_name(backbone)
    size = image_size or 224
    options: dict[str, Any] = {}
    if library == TIMM:
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(name)
        if known is not None and known.fixed_input_size:
            options["img_size"] = size
    plan = Plan(library, name, options)
    return Tower(plan.body(), plan, size, IMAGENET_MEAN, IMAGENET_STD, "bilinear")


def weights_file(file: str) -> Path:
    """A file of weights for a network of torchvision.

    Raises:
        ValueError: If it is not there, or no safetensors file by its name.
    """
    path = Path(file).expanduser()
    if not path.is_file() or path.suffix != SAFE:
        raise ValueError(f"student.weights={file}: no such {SAFE} file; torchvision's own weights are pickles")
    return path


def read_into(body: nn.Module, file: str) -> None:
    """Puts the weights of a safetensors file into a network of torchvision; its classifier is passed over.

    Raises:
        ValueError: If the file is damaged, or of another network.
    """
    try:
        found = load_file(weights_file(file))
    except SafetensorError as error:
        raise ValueError(f"student.weights={file} is damaged: {error}") from error
    own = body.get_submodule("net")
    wanted = own.state_dict()
    wrong = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
    if wrong:
        raise ValueError(f"student.weights={file} is of another network: {', '.join(wrong[:3])} do not fit")
    own.load_state_dict({name: found[name] for name in wanted})


def with_head(tower: Tower, num_classes: int, *, frozen: bool) -> Network:
    """A tower with a linear layer for some classes on it, from torch's random numbers.

    Raises:
        ValueError: If it takes no images of its size, or gives no one vector an image.
    """
    body, size = tower.body, tower.image_size
    where = f"{tower.plan.library}:{tower.plan.name} at {size} pixels"
    training = body.training
    try:
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{where} takes no such image: {str(error).partition(chr(10))[0]}") from error
    body.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(f"{where} gives no one vector an image; choose another backbone")
    return Network(body, features.shape[1], num_classes, frozen=frozen)


def _known(library: str) -> list[str]:
    if library == TIMM:
        import timm

        return timm.list_models()
    from torchvision import models

    return models.list_models(module=models)  # those of its sub-packages give maps, boxes, films


def _of_timm(plan: Plan) -> nn.Module:
    import timm

    body: Any = timm.create_model(plan.name, pretrained=False, num_classes=0, **plan.options)
    if plan.pooling is not None:
        body.reset_classifier(0, plan.pooling)
    return body


def _of_torchvision(plan: Plan) -> nn.Module:
    from torchvision import models

    body: Any = models.get_model(plan.name, weights=None, **plan.options)
    last = next((name for name, part in reversed(list(body.named_modules())) if isinstance(part, nn.Linear)), None)
    if last is None:
        raise ValueError(f"student.backbone=torchvision:{plan.name} has no linear classifier; choose another")
    parent, _, child = last.rpartition(".")
    setattr(body.get_submodule(parent), child, nn.Identity())
    return _MainOutput(body)


def _of_open_clip(plan: Plan) -> nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg

    given: Any = dict(plan.options)
    # The text tower is built and dropped, so it is as small as can be.
    text = CLIPTextCfg(context_length=4, vocab_size=8, width=64, heads=1, layers=1)
    return CLIP(given["embed_dim"], given["vision_cfg"], text, quick_gelu=given["quick_gelu"]).visual


class _MainOutput(nn.Module):
    """A network of torchvision without what its side branches say while it is trained."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        out = self.net(pixels)
        return out if isinstance(out, Tensor) else out[0]


_BUILDERS = {TIMM: _of_timm, TORCHVISION: _of_torchvision, OPEN_CLIP: _of_open_clip}
