"""Tests logits as unit vectors: the softmax recovers them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from lgclip.methods.logits import as_unit, from_unit, log_probs


def rows(seed: int, classes: int, scale: float) -> torch.Tensor:
    return torch.randn(5, classes, generator=torch.Generator().manual_seed(seed)) * scale


@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_logits_are_recovered_up_to_a_constant(seed: int, classes: int, scale: float, constant: float) -> None:
    logits = rows(seed, classes, scale) + constant
    back = from_unit(as_unit(logits))
    expected = logits.double() - logits.double().mean(dim=1, keepdim=True)
    assert torch.allclose(back.double(), expected, rtol=1e-4, atol=1e-4 * max(1, scale, abs(constant) / 10))


def test_stored_logits_are_unit_vectors() -> None:
    units = as_unit(rows(0, 7, 30.0))
    assert units.shape == (5, 8)
    assert torch.allclose(units.norm(dim=1), torch.ones(5), atol=1e-6)


def test_uniform_logits_stay_undecided() -> None:
    assert torch.equal(from_unit(as_unit(torch.full((2, 3), 4.0))), torch.zeros(2, 3))


def test_true_class_probability_is_the_softmax() -> None:
    logits = rows(1, 6, 3.0)
    labels = torch.tensor([0, 5, 2, 2, 4])
    expected = log_softmax(logits.double().numpy(), axis=1)[np.arange(5), labels.numpy()]
    assert np.allclose(log_probs(logits, labels).numpy(), expected, atol=1e-12)
