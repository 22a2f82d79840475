"""Judging against NumPy, and what each text weight needs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import normalize

from lgclip.batch import FeatureBatch
from lgclip.calibration import LeaveOneOut
from lgclip.methods.base import Judgement
from lgclip.methods.zero_shot import ZeroShot
from lgclip.rules import Mean
from lgclip.scales import SquareCrops
from lgclip.selection import ByText, First

CLASSES, WIDTH, VIEWS = 5, 16, 3
SCALES = SquareCrops((1.0, 0.5, 0.25), (3.0, 2.0, 1.0))


def zero_shot(name: str, text_weight: float, beside: dict[str, float] | None = None, **options: Any) -> ZeroShot:
    options = {"prototype": Mean(), "selection": First(), "scales": SCALES, "has_text": True, **options}
    return ZeroShot(name, text_weight, beside, **options)


def judgement(scores: np.ndarray, labels: np.ndarray, parts: int = 1) -> Any:
    """What the method base does with a judgement, over some batches that come in any order."""
    method = zero_shot("lgclip", 0.0, has_text=False)
    for part in np.array_split(np.arange(len(labels))[::-1].copy(), parts):
        indices = torch.from_numpy(part)
        batch = FeatureBatch(torch.empty(len(part), 1, 1), torch.from_numpy(labels[part]), indices)
        method.judge("lgclip", torch.from_numpy(scores[part]), batch)
    method.on_test_epoch_end()
    return method.results["lgclip"]


# Few distinct values, so that there are ties.
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=st.sampled_from([-1, 0, 0.5])))
def test_ranks_are_those_of_a_stable_sort(scores: np.ndarray) -> None:
    n, classes = scores.shape
    labels = np.arange(n) % classes
    judged = judgement(scores, labels, parts=2)
    order = np.argsort(-scores, axis=1, kind="stable")  # among equals the lowest index comes first
    assert judged.index.tolist() == list(range(n))
    assert judged.label.tolist() == labels.tolist()
    assert judged.prediction.tolist() == order[:, 0].tolist()
    assert judged.rank.tolist() == [list(order[i]).index(labels[i]) for i in range(n)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Judgement().update(torch.tensor([[0.0, bad]]), torch.tensor([0]), torch.tensor([0]))


def test_large_scores_are_judged_though_their_sum_is_infinite() -> None:
    judged = judgement(np.array([[3e38, 3e38, 2e38], [2e38, 3e38, 3e38]], dtype=np.float32), np.array([1, 2]))
    assert judged.rank.tolist() == [1, 1]
    assert judged.prediction.tolist() == [0, 1]


def stream(seed: int, n: int, views: int) -> FeatureBatch:
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(n, views, WIDTH, generator=generator), dim=-1)
    return FeatureBatch(features, torch.arange(n) % CLASSES, torch.arange(n))


STREAMS = {"text": stream(0, 2 * CLASSES, 1), "synthetic": stream(1, 4 * CLASSES, VIEWS), "real": stream(2, 40, VIEWS)}


def after_test(text_weight: float, names: tuple[str, ...] = tuple(STREAMS), **options: Any) -> ZeroShot:
    """A method after the test loop, without a trainer: its streams in order."""
    method = zero_shot("own", text_weight, has_text="text" in names, **options)
    streams = [SimpleNamespace(name=name) for name in names]
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
def test_a_text_weight_is_the_weight_of_the_text_score(weight: float, unit: bool) -> None:
    """Fusing prototypes is fusing scores: arXiv:2512.17160, sec. 3."""
    text = means(STREAMS["text"].features[:, 0].double().numpy(), STREAMS["text"].labels, True)
    image = means(fused(STREAMS["synthetic"]), STREAMS["synthetic"].labels, unit)
    real = fused(STREAMS["real"])
    scores = weight * real @ text.T + (1 - weight) * real @ image.T
    names = ("text", "real") if weight == 1 else tuple(STREAMS)
    judged = after_test(weight, names, prototype=Mean(unit)).results["own"]
    assert judged.prediction.tolist() == scores.argmax(axis=1).tolist()
    own = scores[np.arange(len(scores)), judged.label.numpy()]
    assert judged.rank.tolist() == (scores > own[:, None]).sum(axis=1).tolist()


def test_what_stands_beside_is_judged_as_if_alone() -> None:
    together = after_test(0.0, beside={"text": 1.0, "mix": 0.5}).results
    assert list(together) == ["own", "text", "mix"], "the method itself comes first"
    for name, weight in (("own", 0.0), ("text", 1.0), ("mix", 0.5)):
        assert torch.equal(together[name].rank, after_test(weight).results["own"].rank)


@pytest.mark.parametrize("name", ["fusion 0.25", "half"])  # no file name, no attribute of a module: just a name
def test_a_method_may_have_any_name(name: str) -> None:
    assert torch.equal(after_test(0.0, beside={name: 0.25}).results[name].rank, after_test(0.25).results["own"].rank)


def test_top1_is_the_share_of_rank_zero() -> None:
    method = after_test(0.0)
    ranks = method.results["own"].rank.numpy()
    assert 0 < method.top1 < 1
    assert method.top1 == pytest.approx(np.mean(ranks == 0))


@pytest.mark.parametrize(
    ("text_weight", "has_text", "kept", "needs_images"),
    [
        (0.0, True, ["own", "text", "mix", "image"], True),
        (0.5, True, ["own", "text", "mix", "image"], True),
        (1.0, True, ["own", "text"], False),
        (0.0, False, ["own", "image"], True),
    ],
)
def test_what_needs_text_or_images_that_are_not_there_is_left_out(
    text_weight: float, has_text: bool, kept: list[str], needs_images: bool
) -> None:
    beside = {"text": 1.0, "mix": 0.5, "image": 0.0}
    method = zero_shot("own", text_weight, beside, has_text=has_text)
    assert list(method.given) == kept
    assert method.needs_images is needs_images


@pytest.mark.parametrize("weights", [(-0.1, {}), (1.1, {}), (float("nan"), {}), (0.0, {"own too": 2.0})])
def test_a_weight_out_of_range_is_refused(weights: tuple[float, dict[str, float]]) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        zero_shot("own", *weights)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_method_of_sentences_needs_a_text_tower(weight: float) -> None:
    with pytest.raises(ValueError, match="text tower"):
        zero_shot("own", weight, has_text=False)


def test_choosing_images_by_text_needs_a_text_tower() -> None:
    with pytest.raises(ValueError, match="selection=text needs a text tower"):
        zero_shot("own", 0.0, selection=ByText(2), has_text=False)
    zero_shot("own", 0.0, selection=ByText(), has_text=False)  # all images stay: nothing is chosen


def test_what_was_used_is_told() -> None:
    told = after_test(0.5, beside={"text": 1.0}, calibration=LeaveOneOut(text_weights=[0.2])).choices
    assert list(told) == ["own", "text"]
    assert told["own"]["prototype"] == {"part": "Mean", "renormalise": True}
    assert told["own"]["text_weight"] in (0.5, 0.2)
    assert isinstance(told["own"]["leave_one_out"], float)
    assert told["text"]["leave_one_out"] is None, "sentences alone have nothing to choose"
    assert after_test(0.0).choices["own"]["leave_one_out"] is None
