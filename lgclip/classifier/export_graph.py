"""Builds what an exported file holds, one module from pixels to scores, and traces it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lgclip.classifier.export_preprocessing import PillowResize, Preprocessing
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.backbone import Plan
from lgclip.encoder.base import Encoder, exact_encoder
from lgclip.encoder.scales import Scales, WithFullImage
from lgclip.methods.calibration import Choice
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Mean
from lgclip.methods.selection import First
from lgclip.training.student.encoder import StudentEncoder


class ClassifierGraph(nn.Module):
    """Computes scores and probabilities of the classes from the pixels of images, without any text tower.

    Args:
        tower: Maps preprocessed pixels to features.
        head: Maps unit features to a score for each class; None where the tower gives the scores.
        scales: Fuses the views of an image.
        preprocessing: Normalization of the channels, and with `resize` the steps before it.
        temperature: Divisor of the scores before the softmax.
        resize: Whether to resize within the graph, so that it takes images of any size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tower: nn.Module,
        head: nn.Module | None,
        scales: Scales,
        preprocessing: Preprocessing,
        temperature: float,
        *,
        resize: bool,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.resize = PillowResize(preprocessing.steps) if resize else None
        self._scales = scales
        self._temperature = temperature
        # Not persistent: they are in the metadata, and no weights.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: UInt8[Tensor, "b *s 3 h w"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
        views = len(self._scales.views)
        images = pixels.float()
        if views > 1:
            images = images.flatten(0, 1)
        if self.resize is not None:
            images = self.resize(images)
        features = self.tower((images / 255 - self.mean) / self.std)
        # The vision towers of CoCa give the features of the patches as well.
        if isinstance(features, tuple):
            features = features[0]
        if self.head is None:
            # As `logits.as_unit` centers them, so that the scores are those of the classifier.
            scores = features.float() - features.float().mean(dim=1, keepdim=True)
            return scores, (scores / self._temperature).softmax(dim=1)
        unit = F.normalize(features.float(), dim=-1).unflatten(0, (-1, views))
        scores = self.head(self._scales.fuse(unit))
        return scores, (scores / self._temperature).softmax(dim=1)


class Centering(nn.Module):
    """Removes the mean of real images from unit features, and normalizes them again.

    Args:
        mean: The mean.
    """

    def __init__(self, mean: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", mean)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return F.normalize(features - self.mean, dim=-1)


class PrototypeHead(nn.Module):
    """Scores by any rule, with the images that represent the classes as buffers.

    Args:
        choice: Scoring rule, selection and text weight.
        support: Features of the synthetic images.
        text: Text prototypes, where they have a weight.
    """

    def __init__(self, choice: Choice, support: SupportSet, text: Float[Tensor, "c d"] | None) -> None:
        super().__init__()
        kept = choice.selection.select(support, text)
        # The scorer holds these very tensors, so that they are in the file once.
        self.register_buffer("features", kept.features)
        self.register_buffer("labels", kept.labels)
        if text is not None and choice.text_weight > 0:
            self.register_buffer("text", text)
        self._score = choice._replace(selection=First()).fit(kept, text)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        return self._score(features)


def fused_scales(scales: Scales) -> Scales:
    """Returns the views that are fused: one that only the selection of images uses is not computed for each image."""
    while isinstance(scales, WithFullImage):
        scales = scales.others
    return scales


def build_graph(
    classifier: ImageClassifier, preprocessing: Preprocessing, *, resize: bool
) -> tuple[ClassifierGraph, Plan]:
    """Builds the module of a classifier on the CPU, in fp32, and returns it with the plan of its tower.

    Raises:
        ValueError: If the encoder gives no tower, or something of the classifier cannot be traced.
    """
    if classifier.gives_logits:
        assert isinstance(classifier.encoder, StudentEncoder)
        body: nn.Module = classifier.encoder.network()
        plan = Plan(**classifier.encoder.about["network"])
        head: nn.Module | None = None
    else:
        head = build_head(classifier)  # before the weights are read: a rule may be one that cannot be traced
        body, plan = _vision_tower(classifier.encoder)
    graph = ClassifierGraph(
        body,
        head,
        fused_scales(classifier.scales),
        preprocessing,
        classifier.temperature.value,
        resize=resize,
    )
    return graph.eval().requires_grad_(False), plan


def _vision_tower(encoder: Encoder) -> tuple[nn.Module, Plan]:
    try:
        tower = exact_encoder(encoder).tower()
    except ValueError as error:
        # The encoder's own words are about training.
        raise ValueError(f"the vision tower cannot be taken from its encoder for an export: {error}") from error
    return tower.body, tower.plan


def build_head(classifier: ImageClassifier) -> nn.Module:
    """Returns the module that scores unit features: one matrix product for `Mean`, the scorer for another rule.

    Raises:
        ValueError: If the rule cannot be traced.
    """
    choice = classifier.choice
    support = classifier.references.images
    text = classifier.references.text
    if choice.text_weight == 1 or type(choice.rule) in (Mean, GDA):
        return _aligned(classifier, _linear(choice, support, text))
    assert support is not None
    head = _aligned(classifier, PrototypeHead(choice, support, text))
    example = F.normalize(torch.ones(2, support.features.shape[1]), dim=-1)
    try:
        torch.export.export(head, (example,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
    except Exception as error:  # a rule may compute anything
        raise ValueError(
            f"prototype={type(choice.rule).__name__}: this scoring rule cannot be exported "
            f"({str(error).strip().partition(chr(10))[0]}); evaluate and save with prototype=mean"
        ) from error
    return head


def _aligned(classifier: ImageClassifier, head: nn.Module) -> nn.Module:
    """Returns the head with the classifier's alignment before it."""
    if classifier.alignment is None:
        return head
    return nn.Sequential(Centering(classifier.alignment.real_mean(classifier.support)), head)


def _linear(choice: Choice, support: SupportSet | None, text: Float[Tensor, "c d"] | None) -> nn.Linear:
    """Returns the matrix, and for GDA the bias, of scores that are linear in the feature."""
    compared = text if support is None else support.features
    assert compared is not None
    if support is not None:
        full_image = None if support.full_image is None else support.full_image.double()
        support = support._replace(features=support.features.double(), full_image=full_image)
    scorer = choice.fit(support, None if text is None else text.double())
    # Of a linear function the scores of 0 are the bias, and those of the unit vectors the columns of the matrix.
    bias = scorer(torch.zeros(1, compared.shape[1], dtype=torch.float64))
    weight = scorer(torch.eye(compared.shape[1], dtype=torch.float64)) - bias
    has_bias = choice.text_weight < 1 and isinstance(choice.rule, GDA)
    linear = nn.Linear(weight.shape[0], weight.shape[1], bias=has_bias)
    linear.weight = nn.Parameter(weight.T.float().contiguous(), requires_grad=False)
    if has_bias:
        linear.bias = nn.Parameter(bias[0].float(), requires_grad=False)
    return linear


def trace(graph: ClassifierGraph, example: UInt8[Tensor, "b *s 3 h w"]) -> ExportedProgram:
    """Traces the module for any number of images, and with a resize for any size.

    Args:
        graph: The module.
        example: Pixels of two images; torch would take a single one for a constant.

    Raises:
        ValueError: If the tower cannot be traced.
    """
    axes = {0: Dim("batch", min=1)}
    if graph.resize is not None:
        axes |= {2: Dim("height", min=1), 3: Dim("width", min=1)}
    try:
        with portable_attention(), torch.no_grad():
            program = torch.export.export(graph, (example,), dynamic_shapes={"pixels": axes}, strict=False)
    except Exception as error:  # a tower may compute anything
        raise ValueError(
            f"the vision tower cannot be traced ({str(error).strip().partition(chr(10))[0]}); "
            "format=safetensors holds its weights"
        ) from error
    # They name the files of this machine, and ONNX would keep them with every node.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def portable_attention() -> Iterator[None]:
    """Turns off torch's fused attention of inference, an operation that no other runtime has."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
