"""Selects unlabelled images and their pseudo-labels, from predicted probabilities.

Implements the rules of GRIP (arXiv:2306.01669) and CPL (arXiv:2406.10502). No label of a real image is used here.
Letters in shapes: u unlabelled images, t classes that a pseudo-label may have (`ClassSplit.targets`), p images that
get one.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RELEASE_VALIDATES_FROM = 10
"""Pseudo-labelled images per class from which GRIP's release validates on a part of them."""
TRAINING_FRACTION = 0.8
"""Fraction of its labels and pseudo-labels that GRIP's release trains on."""


def k_of(round: int, rounds: int, unlabelled: int, classes: int) -> int:
    """Returns the number of pseudo-labelled images per class in a round of GRIP (arXiv:2306.01669, sec. 4).

    It grows by the same fraction of the pool each round, up to the whole pool divided evenly:
    `int(n * int(u / rounds) / t)`, at most `u // t`. Where the pool is so small that this is 0, it is 1.

    Args:
        round: Index of the round, from 1.
        rounds: Number of rounds.
        unlabelled: Number of unlabelled images.
        classes: Number of classes that pseudo-labels may have.

    Raises:
        ValueError: If there is no such round, or there are fewer images than classes.
    """
    if not 1 <= round <= rounds:
        raise ValueError(f"round {round}: rounds are 1 to {rounds}")
    if not 1 <= classes <= unlabelled:
        raise ValueError(
            f"{unlabelled} unlabelled images for {classes} classes: at least one per class is needed; use a larger pool"
        )
    # Integer division first, as in the paper's formula: n * int(U / rounds) differs from int(n * U / rounds).
    return max(1, min(round * (unlabelled // rounds) // classes, unlabelled // classes))


def check_k(k: int, unlabelled: int) -> None:
    """Rejects a number of pseudo-labels per class that the pool cannot provide.

    Args:
        k: Number of pseudo-labelled images per class.
        unlabelled: Number of unlabelled images.

    Raises:
        ValueError: If it is below 1, or above the number of unlabelled images.
    """
    if not 1 <= k <= unlabelled:
        raise ValueError(
            f"K={k} pseudo-labels of a class: it must be 1 to {unlabelled}, the unlabelled images there are"
        )


def confident(probs: Float[Tensor, "u t"], k: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Selects the `k` most confident images of each class, no image twice.

    Pairs of image and class are processed in order of decreasing probability; a pair is skipped if the image has a
    label or the class has its `k` images. Every class thus has `k` images where the pool has enough for all, an image
    gets the best class that is still open, and the order of the pool matters only among equals: the earlier image comes
    first, then the lower class.

    Args:
        probs: Probability of each class.
        k: Number of images per class.

    Returns:
        Indices of the images, ascending, and the column of each one's class.

    Raises:
        ValueError: If `k` is out of range or a probability is invalid.
    """
    _check(probs, k)
    return _shared_out(probs, torch.ones_like(probs, dtype=torch.bool), k)


def candidates(
    probs: Float[Tensor, "u t"], alpha: float, beta: float, k: int
) -> tuple[Int[Tensor, " p"], Bool[Tensor, "p t"]]:
    """Computes the candidate labels of CPL (arXiv:2406.10502, sec. 3), for the `k` most confident images of each class.

    A class is a candidate of an image if it is in the smallest set of the image's most probable classes that together
    reach `tau`, and if the image's probability is at or above the class's `beta`-quantile. `tau` is the
    `alpha`-quantile of the images' highest probabilities. An image without a candidate is left out. The others are
    assigned as in `confident`, each to one of its candidates, and keep all of them.

    Args:
        probs: Probability of each class; an image's sum to 1.
        alpha: Quantile, in [0, 1]. The release uses a percentage.
        beta: Quantile, in [0, 1].
        k: Number of images per class.

    Returns:
        Indices of the images, ascending, and the candidates of each.

    Raises:
        ValueError: If a value is out of range, a probability is invalid, or no image has a candidate.
    """
    _check(probs, k)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: it must be in [0, 1], the level of a quantile")
    # In double precision, so that a sum of probabilities compares with tau in the same way on every device.
    exact = probs.double()
    tau = torch.quantile(exact.amax(dim=1), alpha)
    # Stable, so that the lower class comes first among equal ones.
    ranked, order = exact.sort(dim=1, descending=True, stable=True)
    # What the more probable classes reach without this one. A class belongs to the set while that is below tau, so the
    # most probable class always does, and the set is the smallest that reaches tau.
    before = torch.nn.functional.pad(ranked.cumsum(dim=1)[:, :-1], (1, 0))
    # `scatter` undoes the sort: the mask is in the order of the classes again.
    within = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before < tau)
    # A column at a time: torch's quantile takes 16 million numbers at most.
    least = torch.stack([torch.quantile(column, beta) for column in exact.unbind(dim=1)])
    allowed = within & (exact >= least)
    if not bool(allowed.any()):
        raise ValueError(f"alpha={alpha} and beta={beta} leave no image a candidate label; lower beta or raise alpha")
    # Each image takes up one class's room, but keeps every candidate: the loss sums over all of them.
    places, _ = _shared_out(probs, allowed, k)
    return places, allowed[places]


def leaderboard(probs: Float[Tensor, "u t"], k: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Reproduces how GRIP's release selects the `k` most confident images of each class (`release_bugs=true`).

    Images are processed one by one. An image that does not fit on its own class's board tries all other boards, and may
    be on several; an image that is pushed off a board tries none. A full board compares with its last entry, which is
    the worst only once it has been sorted. Labels thus depend on the order of the pool, and an image may get two.

    Args:
        probs: Probability of each class.
        k: Number of images per class.

    Returns:
        Indices of the images and columns of their classes, board by board.

    Raises:
        ValueError: If `k` is out of range or a probability is invalid.
    """
    _check(probs, k)
    boards: list[list[tuple[float, int]]] = [[] for _ in range(probs.shape[1])]

    def enters(label: int, entry: tuple[float, int]) -> bool:
        board = boards[label]
        # Not sorted while it fills: the last entry is then the latest, not the worst. That is the release's fault.
        if len(board) < k:
            board.append(entry)
        elif board[-1][0] < entry[0]:
            boards[label] = sorted([*board, entry], reverse=True)[:k]
        else:
            return False
        return True

    for place, row in enumerate(probs.tolist()):
        likeliest = row.index(max(row))
        if enters(likeliest, (row[likeliest], place)):
            continue
        # No `break` after the first board that has room: in the release an image enters every such board.
        for chance, label in sorted(zip(row, range(len(row)), strict=True), reverse=True):
            if label != likeliest:
                enters(label, (chance, place))
    entries = []
    for label, board in enumerate(boards):
        entries.extend((place, label) for _, place in board)
    places, labels = torch.tensor(entries, device=probs.device).unbind(dim=1)
    return places, labels


def training_part(count: int) -> Int[Tensor, " m"]:
    """Returns the 80% of a list that GRIP's release trains on (`release_bugs=true`); it validates on the rest.

    Args:
        count: Number of pseudo-labels or labels.

    Returns:
        Indices in the list, ascending. The release samples them with NumPy's legacy generator and seed 0.
    """
    chosen = np.random.RandomState(0).choice(count, size=int(count * TRAINING_FRACTION), replace=False)
    return torch.from_numpy(np.sort(chosen))


def _check(probs: Tensor, k: int) -> None:
    check_k(k, len(probs))
    # A comparison with NaN is false, so such images would be left out without a word.
    if not bool(probs.isfinite().all()) or bool((probs < 0).any()):
        raise ValueError("probabilities contain NaN or negative values: check the features")


def _shared_out(probs: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Assigns each image to at most one allowed class, each class to at most `k` images, the most probable first.

    Since images and classes rank each other by the same values, CPL's release reaches the same result by images that
    ask their classes in turn and are displaced by better ones: the only stable matching, except among equals.
    """
    images, classes = probs.shape
    # A pair of an image and a class is one number, image * classes + class. The sort is stable, so among equals the
    # earlier image comes first, then the lower class.
    pairs = allowed.flatten().nonzero().flatten()
    order = pairs[probs.flatten()[pairs].argsort(descending=True, stable=True)]
    labels = [-1] * images
    room = [k] * classes
    # No more images than this can get a label. Stopping there matters: most pairs come after the last that counts.
    remaining = min(images, k * classes)
    for pair in order.tolist():
        place, label = divmod(pair, classes)
        if labels[place] < 0 and room[label]:
            labels[place] = label
            room[label] -= 1
            remaining -= 1
            if not remaining:
                break
    label_of = torch.tensor(labels, device=probs.device)
    places = (label_of >= 0).nonzero().flatten()
    return places, label_of[places]
