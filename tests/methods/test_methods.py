"""Tests evaluation against NumPy, and what each text weight needs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import normalize

from lgclip.batches import FeatureBatch
from lgclip.encoder.scales import SquareCrops
from lgclip.methods.base import PredictionCollector
from lgclip.methods.calibration import LeaveOneOut
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import ByText, First
from lgclip.methods.zero_shot import ZeroShot
from lgclip.types import Role

CLASSES = 5
WIDTH = 16
VIEWS = 3
SCALES = SquareCrops((1.0, 0.5, 0.25), (3.0, 2.0, 1.0))


def zero_shot(name: str, text_weight: float, baselines: dict[str, float] | None = None, **options: Any) -> ZeroShot:
    options = {"prototype": Mean(), "selection": First(), "scales": SCALES, "has_text": True, **options}
    return ZeroShot(name, text_weight, baselines, **options)


def collector(scores: np.ndarray, labels: np.ndarray, parts: int = 1) -> Any:
    """Collects predictions over batches in any order, as the method base does."""
    method = zero_shot("lgclip", 0.0, has_text=False)
    for part in np.array_split(np.arange(len(labels))[::-1].copy(), parts):
        indices = torch.from_numpy(part)
        batch = FeatureBatch(torch.empty(len(part), 1, 1), torch.from_numpy(labels[part]), indices)
        method.collect("lgclip", torch.from_numpy(scores[part]), batch)
    method.on_test_epoch_end()
    return method.results["lgclip"]


# Few distinct values, so that there are ties.
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=st.sampled_from([-1, 0, 0.5])))
def test_ranks_match_a_stable_sort(scores: np.ndarray) -> None:
    n, classes = scores.shape
    labels = np.arange(n) % classes
    predictions = collector(scores, labels, parts=2)
    order = np.argsort(-scores, axis=1, kind="stable")  # among equals the lowest index comes first
    assert predictions.index.tolist() == list(range(n))
    assert predictions.label.tolist() == labels.tolist()
    assert predictions.prediction.tolist() == order[:, 0].tolist()
    assert predictions.rank.tolist() == [list(order[i]).index(labels[i]) for i in range(n)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_scores_are_rejected(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        PredictionCollector().update(torch.tensor([[0.0, bad]]), torch.tensor([0]), torch.tensor([0]))


def test_large_scores_are_evaluated() -> None:
    predictions = collector(np.array([[3e38, 3e38, 2e38], [2e38, 3e38, 3e38]], dtype=np.float32), np.array([1, 2]))
    assert predictions.rank.tolist() == [1, 1]
    assert predictions.prediction.tolist() == [0, 1]


def stream(seed: int, n: int, views: int) -> FeatureBatch:
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(n, views, WIDTH, generator=generator), dim=-1)
    return FeatureBatch(features, torch.arange(n) % CLASSES, torch.arange(n))


ROLES = {"text": Role.TEXT, "synthetic": Role.SYNTHETIC, "real": Role.EVALUATED}
STREAMS = {"text": stream(0, 2 * CLASSES, 1), "synthetic": stream(1, 4 * CLASSES, VIEWS), "real": stream(2, 40, VIEWS)}


def after_test(text_weight: float, names: tuple[str, ...] = tuple(STREAMS), **options: Any) -> ZeroShot:
    """Returns a method after the test loop, without a trainer: its streams in order."""
    method = zero_shot("own", text_weight, has_text="text" in names, **options)
    streams = [SimpleNamespace(name=name, role=ROLES[name], averages_scores=False) for name in names]
    data = SimpleNamespace(num_classes=CLASSES, width=WIDTH, streams=streams)
    method._trainer = SimpleNamespace(datamodule=data)  # pyright: ignore[reportAttributeAccessIssue]
    method.setup("test")
    for place, name in enumerate(names):
        method.test_step(STREAMS[name], 0, place)
    method.on_test_epoch_end()
    return method


def fused(batch: FeatureBatch) -> np.ndarray:
    rows = np.einsum("nsd,s->nd", batch.features.double().numpy(), np.array(SCALES.weights) / sum(SCALES.weights))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def means(rows: np.ndarray, labels: torch.Tensor, unit: bool) -> np.ndarray:
    mean = np.stack([rows[labels.numpy() == c].mean(axis=0) for c in range(CLASSES)])
    return mean / np.linalg.norm(mean, axis=1, keepdims=True) if unit else mean


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_text_weight_fuses_scores(weight: float, unit: bool) -> None:
    """Checks that fusing prototypes equals fusing scores (arXiv:2512.17160, sec. 3)."""
    text = means(STREAMS["text"].features[:, 0].double().numpy(), STREAMS["text"].labels, True)
    image = means(fused(STREAMS["synthetic"]), STREAMS["synthetic"].labels, unit)
    real = fused(STREAMS["real"])
    scores = weight * real @ text.T + (1 - weight) * real @ image.T
    names = ("text", "real") if weight == 1 else tuple(STREAMS)
    predictions = after_test(weight, names, prototype=Mean(unit)).results["own"]
    assert predictions.prediction.tolist() == scores.argmax(axis=1).tolist()
    label_scores = scores[np.arange(len(scores)), predictions.label.numpy()]
    assert predictions.rank.tolist() == (scores > label_scores[:, None]).sum(axis=1).tolist()


def test_baselines_are_evaluated_independently() -> None:
    together = after_test(0.0, baselines={"text": 1.0, "mix": 0.5}).results
    assert list(together) == ["own", "text", "mix"], "the method itself comes first"
    for name, weight in (("own", 0.0), ("text", 1.0), ("mix", 0.5)):
        assert torch.equal(together[name].rank, after_test(weight).results["own"].rank)


@pytest.mark.parametrize("name", ["fusion 0.25", "half"])  # no file name, no attribute of a module: just a name
def test_method_can_have_any_name(name: str) -> None:
    assert torch.equal(after_test(0.0, baselines={name: 0.25}).results[name].rank, after_test(0.25).results["own"].rank)


def test_top1_is_the_fraction_of_rank_zero() -> None:
    method = after_test(0.0)
    ranks = method.results["own"].rank.numpy()
    assert 0 < method.top1 < 1
    assert method.top1 == pytest.approx(np.mean(ranks == 0))


@pytest.mark.parametrize(
    ("text_weight", "has_text", "names", "needs_images"),
    [
        (0.0, True, ["own", "text", "mix", "image"], True),
        (0.5, True, ["own", "text", "mix", "image"], True),
        (1.0, True, ["own", "text"], False),
        (0.0, False, ["own", "image"], True),
    ],
)
def test_baselines_without_their_inputs_are_skipped(
    text_weight: float, has_text: bool, names: list[str], needs_images: bool
) -> None:
    baselines = {"text": 1.0, "mix": 0.5, "image": 0.0}
    method = zero_shot("own", text_weight, baselines, has_text=has_text)
    assert list(method.configured) == names
    assert method.needs_images is needs_images


@pytest.mark.parametrize("weights", [(-0.1, {}), (1.1, {}), (float("nan"), {}), (0.0, {"own too": 2.0})])
def test_invalid_weight_is_rejected(weights: tuple[float, dict[str, float]]) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        zero_shot("own", *weights)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_text_method_requires_a_text_tower(weight: float) -> None:
    with pytest.raises(ValueError, match="text tower"):
        zero_shot("own", weight, has_text=False)


def test_selection_by_text_requires_a_text_tower() -> None:
    with pytest.raises(ValueError, match="selection=text needs a text tower"):
        zero_shot("own", 0.0, selection=ByText(2), has_text=False)
    zero_shot("own", 0.0, selection=ByText(), has_text=False)  # all images stay: nothing is chosen


def test_choices_are_reported() -> None:
    choices = after_test(0.5, baselines={"text": 1.0}, calibration=LeaveOneOut(text_weights=[0.2])).choices
    assert list(choices) == ["own", "text"]
    assert choices["own"]["prototype"] == {"part": "Mean", "renormalize": True}
    assert choices["own"]["text_weight"] in (0.5, 0.2)
    assert isinstance(choices["own"]["leave_one_out"], float)
    assert choices["text"]["leave_one_out"] is None, "sentences alone have nothing to choose"
    assert after_test(0.0).choices["own"]["leave_one_out"] is None
