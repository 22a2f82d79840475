"""Logits as unit vectors, so that they are stored, resumed and streamed as features are."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad


def as_unit(logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c+1"]:
    """The direction of (logits less their mean, 1): homogeneous coordinates, from which `from_unit` has them back.

    Args:
        logits: Scores whose softmax is meant, which a constant does not change.
    """
    centred = logits.float() - logits.float().mean(dim=1, keepdim=True)
    return normalize(pad(centred, (0, 1), value=1.0), dim=1)


def from_unit(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d-1"]:
    """The logits of `as_unit`, with mean 0, up to the rounding of fp32."""
    return features[:, :-1] / features[:, -1:]


def log_chances(logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, " b"]:
    """Natural logarithm of the probability of each image's true class, in double precision."""
    return torch.log_softmax(logits.double(), dim=1).gather(1, labels[:, None])[:, 0]
