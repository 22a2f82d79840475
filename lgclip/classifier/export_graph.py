"""Builds what an exported file holds, one module from pixels to scores, and traces it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lgclip.classifier.export_preprocessing import InputSteps, Preprocessing
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.backbone import Plan
from lgclip.encoder.base import Encoder, exact_encoder
from lgclip.encoder.paired import split_features
from lgclip.encoder.scales import Scales, WithFullImage
from lgclip.methods.calibration import Choice
from lgclip.methods.paired import Paired, SingleEncoder
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Mean
from lgclip.methods.selection import First
from lgclip.training.student.encoder import StudentEncoder


class PairedTower(nn.Module):
    """Maps images to the features of two encoders, as `PairedEncoder` does.

    Args:
        towers: Both towers.
        inputs: The steps before each, from the same images.
    """

    def __init__(self, towers: Sequence[nn.Module], inputs: Sequence[InputSteps]) -> None:
        super().__init__()
        self.first, self.second = towers
        self.first_input, self.second_input = inputs

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        first = F.normalize(_features(self.first(self.first_input(images))), dim=-1)
        second = F.normalize(_features(self.second(self.second_input(images))), dim=-1)
        return torch.cat([first, second], dim=-1) / math.sqrt(2)


def _features(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    # The vision towers of CoCa give the features of the patches as well.
    return (output[0] if isinstance(output, tuple) else output).float()


class ClassifierGraph(nn.Module):
    """Computes scores and probabilities of the classes from the pixels of images, without any text tower.

    Args:
        tower: Maps the output of `inputs` to features.
        head: Maps unit features to a score for each class; None where the tower gives the scores.
        scales: Fuses the views of an image.
        inputs: The steps before the tower; those of a `PairedTower` are inside it.
        temperature: Divisor of the scores before the softmax.
        takes_any_size: Whether images are resized within the graph.
    """

    def __init__(
        self,
        tower: nn.Module,
        head: nn.Module | None,
        scales: Scales,
        inputs: nn.Module,
        temperature: float,
        *,
        takes_any_size: bool,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.inputs = inputs
        self.takes_any_size = takes_any_size
        self._scales = scales
        self._temperature = temperature

    def forward(self, pixels: UInt8[Tensor, "b *s 3 h w"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
        views = len(self._scales.views)
        images = pixels.float()
        if views > 1:
            images = images.flatten(0, 1)
        features = _features(self.tower(self.inputs(images)))
        if self.head is None:
            # As `logits.as_unit` centers them, so that the scores are those of the classifier.
            scores = features - features.mean(dim=1, keepdim=True)
            return scores, (scores / self._temperature).softmax(dim=1)
        unit = F.normalize(features, dim=-1).unflatten(0, (-1, views))
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


class UnitHalves(nn.Module):
    """Normalizes the features of each encoder of a pair.

    Args:
        width: Feature dimension of the first encoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return torch.cat(split_features(features, self._width), dim=1)


class PrototypeHead(nn.Module):
    """Scores by any rule, with the images that represent the classes as buffers.

    Args:
        choice: Scoring rule, selection and text weight.
        support: Features of the synthetic images.
        text: Text prototypes, where they have a weight.
    """

    def __init__(self, choice: Choice, support: SupportSet, text: Float[Tensor, "c d"] | None) -> None:
        super().__init__()
        selected = choice.selection.select(support, text)
        # The scorer holds these very tensors, so that they are in the file once.
        self.register_buffer("features", selected.features)
        self.register_buffer("labels", selected.labels)
        if text is not None and choice.text_weight > 0:
            self.register_buffer("text", text)
        self._score = choice._replace(selection=First()).fit(selected, text)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        return self._score(features)


def fused_scales(scales: Scales) -> Scales:
    """Returns the views that are fused: one that only the selection of images uses is not computed for each image."""
    while isinstance(scales, WithFullImage):
        scales = scales.others
    return scales


def build_graph(
    classifier: ImageClassifier, preprocessings: Sequence[Preprocessing], *, resize: bool
) -> tuple[ClassifierGraph, list[Plan]]:
    """Builds the module of a classifier on the CPU, in fp32, and returns it with the plan of each of its towers.

    Args:
        classifier: The classifier.
        preprocessings: The preprocessing of each tower.
        resize: Whether to resize within the graph.

    Raises:
        ValueError: If the encoder gives no tower, or something of the classifier cannot be traced.
    """
    steps = [InputSteps(preprocessing, resize=resize) for preprocessing in preprocessings]
    inputs: nn.Module = steps[0]
    if classifier.gives_logits:
        assert isinstance(classifier.encoder, StudentEncoder)
        body: nn.Module = classifier.encoder.network()
        plans = [Plan(**classifier.encoder.about["network"])]
        head: nn.Module | None = None
    else:
        head = build_head(classifier)  # before the weights are read: a rule may be one that cannot be traced
        parts = single_encoders(classifier.encoder)
        bodies, plans = map(list, zip(*map(_vision_tower, parts), strict=True))
        body = bodies[0]
        if len(bodies) > 1:
            body = PairedTower(bodies, steps)
            inputs = nn.Identity()
    graph = ClassifierGraph(
        body,
        head,
        fused_scales(classifier.scales),
        inputs,
        classifier.temperature.value,
        takes_any_size=resize,
    )
    return graph.eval().requires_grad_(False), plans


def single_encoders(encoder: Encoder) -> list[Encoder]:
    """Returns both encoders of a pair, or the encoder itself."""
    return list(encoder.parts().values()) or [encoder]


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
    rule = choice.rule
    is_paired = isinstance(rule, Paired | SingleEncoder)
    # The scores of two encoders are linear in both unit features where those of each are.
    if choice.text_weight == 1 or type(rule.rule if is_paired else rule) in (Mean, GDA):
        linear: nn.Module = _linear(choice, support, text)
        if is_paired:
            linear = nn.Sequential(UnitHalves(rule.width), linear)
        return _aligned(classifier, linear)
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
    has_bias = choice.text_weight < 1 and not isinstance(choice.rule, Mean)
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
    if graph.takes_any_size:
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
