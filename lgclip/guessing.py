"""Which unlabelled images a round learns from and as what: by the prompt so far, helped by synthetic images."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from lgclip.auxiliary import Fusion, auxiliary, choose, fused, of_classes, softened
from lgclip.pool import Ground
from lgclip.prompt_spec import PromptSpec
from lgclip.pseudolabels import candidates, check_k, confident, k_of, leaderboard


class Guesses(NamedTuple):
    """The images of a round with guessed labels.

    Attributes:
        places: Places among the unlabelled images; with `quirks=release` one may stand there twice.
        sets: Candidates among the target classes, one or more each.
    """

    places: Int[Tensor, " p"]
    sets: Bool[Tensor, "p t"]


class Aid(NamedTuple):
    """What the synthetic images say of the unlabelled ones (arXiv:2504.11930).

    Attributes:
        chances: Probability of each target class.
        fusion: By which values.
        right: Share of left-out synthetic images that these judge right; None where they were given.
    """

    chances: Float[Tensor, "u t"]
    fusion: Fusion
    right: float | None


def images_of_class(spec: PromptSpec, turn: int, unlabelled: int, classes: int) -> int:
    """How many images of each class a round takes.

    Args:
        spec: The recipe.
        turn: Which round, from 1.
        unlabelled: Unlabelled images.
        classes: Target classes.

    Raises:
        ValueError: If the pool has not so many.
    """
    if spec.shots is None:
        return k_of(turn, spec.rounds, unlabelled, classes)
    check_k(spec.shots, unlabelled)
    return spec.shots


def aid_of(spec: PromptSpec, ground: Ground, temperature: float) -> Aid | None:
    """What the synthetic images say; None if the recipe does not ask.

    Args:
        spec: The recipe.
        ground: What is learnt from. No real image's label is looked at.
        temperature: Of the text scores, where it is given.

    Raises:
        ValueError: If a class has too few synthetic images.
    """
    if spec.auxiliary == "none" or not spec.rounds:
        return None
    targets = list(ground.division.targets)
    support = of_classes(ground.support(spec.synthetic_images), targets)
    if spec.auxiliary == "given":
        most = int(support.counts().max())
        fusion, right = Fusion(spec.nearest or most, spec.aux_weight, temperature, spec.aux_temperature), None
    else:
        fusion, right = choose(support, ground.sentences[targets])
    unlabelled = ground.pool.features[ground.division.unlabelled]
    scores = auxiliary(unlabelled, support, fusion.keep)
    return Aid(softened(scores, fusion.aux_temperature), fusion, right)


def guess(spec: PromptSpec, cosines: Float[Tensor, "u t"], temperature: float, aid: Aid | None, k: int) -> Guesses:
    """Labels for the images that are most surely of a class.

    Args:
        spec: The recipe.
        cosines: Of the unlabelled images and the target classes, by the prompt so far.
        temperature: What they are divided by.
        aid: What the synthetic images say.
        k: Images of each class.

    Raises:
        ValueError: If no image has a label then.
    """
    chances = softened(cosines, temperature)
    if aid is not None:
        chances = fused(chances, aid.chances, aid.fusion.weight)
    if spec.candidates:
        return Guesses(*candidates(chances, spec.alpha, spec.beta, k))
    places, columns = (leaderboard if spec.as_released else confident)(chances, k)
    return Guesses(places, one_hot(columns, chances.shape[1]).bool())


def watched(guesses: Guesses, cosines: Float[Tensor, "u t"], hidden: Int[Tensor, " u"] | None) -> dict[str, float]:
    """How good guessed labels are: for analysis, after the guess; nothing that learns is given this.

    Args:
        guesses: The images with guessed labels.
        cosines: Of all unlabelled images and the target classes, by the prompt that was learnt from these.
        hidden: Column of each unlabelled image's true class; None if it is not known.

    Returns:
        `coverage` and `candidates` (how many an image has); with `hidden`, `precision` of the guesses and `accuracy`
        of the prompt on all unlabelled images.
    """
    used = torch.unique(guesses.places)
    found = {
        "coverage": len(used) / len(cosines),
        "candidates": float(guesses.sets.sum(dim=1).double().mean()) if len(used) else 0.0,
    }
    if hidden is None:
        return found
    right = guesses.sets.gather(1, hidden[guesses.places][:, None])
    found["precision"] = float(right.double().mean()) if len(used) else 0.0
    return found | {"accuracy": accuracy_of(cosines, hidden)}


def accuracy_of(cosines: Float[Tensor, "u t"], hidden: Int[Tensor, " u"]) -> float:
    """Share of the unlabelled images whose true class has the highest cosine."""
    return float((cosines.argmax(dim=1) == hidden).double().mean())
