"""Encodes logits as unit vectors, so that they are stored, resumed and streamed like features."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad


def as_unit(logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c+1"]:
    """Returns the direction of (logits - mean, 1): homogeneous coordinates, inverted by `from_unit`.

    Args:
        logits: Scores before a softmax, which is invariant to an added constant.
    """
    # Centered, because a large common offset would leave few digits for the differences between classes.
    centered = logits.float() - logits.float().mean(dim=1, keepdim=True)
    return normalize(pad(centered, (0, 1), value=1.0), dim=1)


def from_unit(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d-1"]:
    """Recovers the logits from the output of `as_unit`, with mean 0, up to the rounding of fp32."""
    return features[:, :-1] / features[:, -1:]


def log_probs(logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, " b"]:
    """Returns the natural logarithm of the probability of each image's true class, in double precision."""
    return torch.log_softmax(logits.double(), dim=1).gather(1, labels[:, None])[:, 0]
