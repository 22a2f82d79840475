"""Assigns pseudo-labels to the unlabelled images of a round: by the current prompt, with help of synthetic images."""

import logging
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from lgclip.training.prompt_tuning.auxiliary_classifier import (
    Fusion,
    auxiliary,
    centered,
    centered_support,
    choose,
    fused,
    of_classes,
    softened,
)
from lgclip.training.prompt_tuning.config import PromptTuningConfig
from lgclip.training.prompt_tuning.pool import PromptTuningData
from lgclip.training.prompt_tuning.pseudo_labels import candidates, check_k, confident, k_of, leaderboard

log = logging.getLogger(__name__)


class PseudoLabels(NamedTuple):
    """Holds the pseudo-labelled images of a round.

    Attributes:
        places: Indices among the unlabelled images; with `release_bugs=true` there may be duplicates.
        sets: Candidates among the target classes, one or more each.
    """

    places: Int[Tensor, " p"]
    sets: Bool[Tensor, "p t"]


class AuxiliaryScores(NamedTuple):
    """Holds the auxiliary classifier's probabilities for the unlabelled images (arXiv:2504.11930).

    Attributes:
        probs: Probability of each target class.
        fusion: Hyperparameters of the fusion.
        correct: Accuracy of these values on held-out synthetic images; None where they were fixed.
        text_correct: Accuracy of the text prompts on them; None where the values were fixed.
        prior: Whether lambda is the recipe's `prior_weight`, since the held-out images said nothing.
    """

    probs: Float[Tensor, "u t"]
    fusion: Fusion
    correct: float | None
    text_correct: float | None = None
    prior: bool = False


def images_of_class(config: PromptTuningConfig, turn: int, unlabelled: int, classes: int) -> int:
    """Returns the number of pseudo-labelled images per class in a round.

    Args:
        config: The recipe.
        turn: Index of the round, from 1.
        unlabelled: Number of unlabelled images.
        classes: Number of target classes.

    Raises:
        ValueError: If the pool does not have so many.
    """
    # Without a fixed number it grows by the round (GRIP); with one it is FPL or IFPL.
    if config.shots is None:
        return k_of(turn, config.rounds, unlabelled, classes)
    check_k(config.shots, unlabelled)
    return config.shots


def auxiliary_scores(config: PromptTuningConfig, data: PromptTuningData, temperature: float) -> AuxiliaryScores | None:
    """Computes the auxiliary classifier's scores; None if the recipe does not use it.

    Args:
        config: The recipe.
        data: The training data. No real image's label is used.
        temperature: Temperature of the text scores, where it is fixed.

    Raises:
        ValueError: If a class has too few synthetic images.
    """
    if config.auxiliary == "none" or not config.rounds:
        return None
    # In TRZSL the labels of unlabeled images are among the unseen classes, so the seen classes' images are left out
    # here.
    targets = list(data.class_split.targets)
    support = of_classes(data.support(config.synthetic_images), targets)
    text = data.sentences[targets]
    unlabelled = data.pool.features[data.class_split.unlabelled]
    text_correct = None
    prior = False
    if config.auxiliary == "fixed":
        # `nearest=null` means all images, which is the size of the largest class.
        most = int(support.counts().max())
        fusion = Fusion(config.aux_neighbors or most, config.aux_weight, temperature, config.aux_temperature)
        correct = None
    else:
        selection = choose(support, text, centering=config.center_auxiliary)
        fusion = selection.fusion
        correct = selection.correct
        text_correct = selection.text_correct
        if selection.saturated:
            prior = config.prior_weight is not None
            fusion = _without_evidence(config, fusion, selection.text_correct)
    # Computed once, before the first round: neither the synthetic images nor the encoder changes from round to round.
    if config.center_auxiliary:
        unlabelled = centered(unlabelled, unlabelled.mean(dim=0))
        support = centered_support(support)
    scores = auxiliary(unlabelled, support, fusion.keep)
    return AuxiliaryScores(softened(scores, fusion.aux_temperature), fusion, correct, text_correct, prior)


def _without_evidence(config: PromptTuningConfig, fusion: Fusion, text_correct: float) -> Fusion:
    """Returns the fusion where held-out synthetic images are too easy: by the recipe's prior, or as it was selected."""
    problem = (
        f"prompt_tuning.auxiliary=selected: the text prompts classify {text_correct:.1%} of the held-out synthetic "
        "images correctly, so these say nothing of how well synthetic images stand for real ones"
    )
    if config.prior_weight is None:
        log.warning(
            "%s; lambda=%g was selected all the same. Set prompt_tuning.prior_weight=0.25 to count them less, or "
            "compare with prompt_tuning=grip",
            problem,
            fusion.weight,
        )
        return fusion
    log.info("%s; lambda and beta are by prompt_tuning.prior_weight=%g", problem, config.prior_weight)
    return fusion._replace(weight=config.prior_weight)


def assign_pseudo_labels(
    config: PromptTuningConfig,
    cosines: Float[Tensor, "u t"],
    temperature: float,
    auxiliary: AuxiliaryScores | None,
    k: int,
) -> PseudoLabels:
    """Assigns pseudo-labels to the most confident images of each class.

    Args:
        config: The recipe.
        cosines: Cosines of the unlabelled images and the target classes, by the current prompt.
        temperature: Divisor of the cosines.
        auxiliary: The auxiliary scores.
        k: Number of images per class.

    Raises:
        ValueError: If no image gets a label.
    """
    probs = softened(cosines, temperature)
    if auxiliary is not None:
        probs = fused(probs, auxiliary.probs, auxiliary.fusion.weight)
    if config.candidate_labels:
        return PseudoLabels(*candidates(probs, config.alpha, config.beta, k))
    select = leaderboard if config.release_bugs else confident
    places, columns = select(probs, k)
    return PseudoLabels(places, one_hot(columns, probs.shape[1]).bool())


def pseudo_label_quality(
    pseudo_labels: PseudoLabels, cosines: Float[Tensor, "u t"], hidden: Int[Tensor, " u"] | None
) -> dict[str, float]:
    """Measures the quality of pseudo-labels: for analysis only; its output is never used for training.

    Args:
        pseudo_labels: The pseudo-labelled images.
        cosines: Cosines of all unlabelled images and the target classes, by the prompt that was tuned on these.
        hidden: Column of each unlabelled image's true class; None if unknown.

    Returns:
        `coverage` and `candidates` (mean number per image); with `hidden`, `precision` of the pseudo-labels and
        `accuracy` of the prompt on all unlabelled images.
    """
    # With the release's boards an image may occur twice, and the pool is covered once.
    used = torch.unique(pseudo_labels.places)
    # The mean of no pseudo-labels is NaN, which JSON cannot hold.
    candidates_per_image = 0.0
    if len(used):
        candidates_per_image = float(pseudo_labels.sets.sum(dim=1).double().mean())
    values = {"coverage": len(used) / len(cosines), "candidates": candidates_per_image}
    if hidden is None:
        return values
    precision = 0.0
    if len(used):
        # A pseudo-label with several candidates is correct if the true class is one of them.
        correct = pseudo_labels.sets.gather(1, hidden[pseudo_labels.places][:, None])
        precision = float(correct.double().mean())
    return values | {"precision": precision, "accuracy": accuracy_of(cosines, hidden)}


def accuracy_of(cosines: Float[Tensor, "u t"], hidden: Int[Tensor, " u"]) -> float:
    """Computes the fraction of the unlabelled images whose true class has the highest cosine."""
    return float((cosines.argmax(dim=1) == hidden).double().mean())
