"""Samples tokens independently of the rest of the batch."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class SeededNoise(LogitsProcessor):
    """Adds exponential noise per row, seeded by the row's class, so that greedy search samples.

    `argmax p / e` with e exponential is a sample from p, and is what `torch.multinomial` does; with one
    generator per class, a class gets the same tokens in a batch as alone, up to the rounding of the model.

    Args:
        seeds: One per class, in the order of the rows.
        rows_per_class: Rows per class.
        device: Device of the scores.
    """

    def __init__(self, seeds: Sequence[int], rows_per_class: int, device: torch.device) -> None:
        self._rows_per_class = rows_per_class
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probs = scores.softmax(dim=-1)
        noise = torch.empty_like(probs)
        # `split` gives views, so that each generator fills the rows of its class in place.
        for rows, generator in zip(noise.split(self._rows_per_class), self._generators, strict=True):
            rows.exponential_(1, generator=generator)
        return probs.div_(noise)


def sampler(
    seeds: Sequence[int], rows_per_class: int, device: torch.device, *, temperature: float, top_p: float, top_k: int
) -> LogitsProcessorList:
    """Returns logits processors: temperature, then the `top_k` most likely tokens (0: all), nucleus `top_p`, sampling.

    Args:
        seeds: One per class.
        rows_per_class: Rows per class.
        device: Device of the scores.
        temperature: Divisor of the scores.
        top_p: Probability mass that is kept.
        top_k: Number of tokens that are kept.
    """
    # The order is that of transformers' own sampling: each step sees what the one before has left.
    steps = LogitsProcessorList()
    if temperature != 1:
        steps.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    steps.append(SeededNoise(seeds, rows_per_class, device))
    return steps
