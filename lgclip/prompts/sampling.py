"""Sampling that does not depend on what else is in the batch."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class OwnNoise(LogitsProcessor):
    """Draws a token for each row by the random numbers of the row's class, for greedy search to pick.

    `argmax p / e` with e exponential is a draw from p, and is what `torch.multinomial` does; with one
    generator a class, a class gets in a batch what it gets alone, up to the rounding of the model.

    Args:
        seeds: One a class, in the order of the rows.
        each: Rows of a class.
        device: Where the scores are.
    """

    def __init__(self, seeds: Sequence[int], each: int, device: torch.device) -> None:
        self._each = each
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chances = scores.softmax(dim=-1)
        drawn = torch.empty_like(chances)
        for rows, generator in zip(drawn.split(self._each), self._generators, strict=True):
            rows.exponential_(1, generator=generator)
        return chances.div_(drawn)


def sampler(
    seeds: Sequence[int], each: int, device: torch.device, *, temperature: float, top_p: float, top_k: int
) -> LogitsProcessorList:
    """Temperature, then the `top_k` likeliest tokens (0: all), then the nucleus `top_p`, then a draw.

    Args:
        seeds: One a class.
        each: Rows of a class.
        device: Where the scores are.
        temperature: Divides the scores.
        top_p: Share of the probability that is kept.
        top_k: Tokens that are kept.
    """
    steps = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))] if temperature != 1 else [])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    steps.append(OwnNoise(seeds, each, device))
    return steps
