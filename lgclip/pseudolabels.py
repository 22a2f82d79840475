"""Which unlabelled images get which labels, from the probabilities that a model gives them.

The rules of GRIP (arXiv:2306.01669) and CPL (arXiv:2406.10502). No label of a real image is looked at here. In shapes
u is unlabelled images, t classes that a pseudo-label may be of (`Division.targets`), p images that get one.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def k_of(round: int, rounds: int, unlabelled: int, classes: int) -> int:
    """How many images of each class get a pseudo-label in a round of GRIP (arXiv:2306.01669, sec. 4).

    It grows by the same share of the pool each round, up to the whole pool shared out evenly:
    `int(n * int(u / rounds) / t)`, at most `u // t`. Where the pool is so small that this is 0, it is 1.

    Args:
        round: Which round, from 1.
        rounds: How many there are.
        unlabelled: Unlabelled images.
        classes: Classes that pseudo-labels may be of.

    Raises:
        ValueError: If there is no such round, or there are fewer images than classes.
    """
    if not 1 <= round <= rounds:
        raise ValueError(f"round {round}: rounds are 1 to {rounds}")
    if not 1 <= classes <= unlabelled:
        raise ValueError(
            f"{unlabelled} unlabelled images for {classes} classes: at least one a class is needed; use a larger pool"
        )
    return max(1, min(round * (unlabelled // rounds) // classes, unlabelled // classes))


def check_k(k: int, unlabelled: int) -> None:
    """Refuses a number of pseudo-labels of a class that the pool cannot give.

    Args:
        k: Images of each class that get a pseudo-label.
        unlabelled: Unlabelled images.

    Raises:
        ValueError: If it is below 1, or above the number of unlabelled images.
    """
    if not 1 <= k <= unlabelled:
        raise ValueError(
            f"K={k} pseudo-labels of a class: it must be 1 to {unlabelled}, the unlabelled images there are"
        )


def confident(chances: Float[Tensor, "u t"], k: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """The `k` most confident images of each class, no image twice.

    The most probable pair of an image and a class comes first, and so on; a pair is left out if the image has a
    label or the class has its `k` images. So every class has `k` images where the pool has enough for all, an image
    gets the best class that is left for it, and the order of the pool decides only among equals: the earlier comes
    first, then the lower class.

    Args:
        chances: Probability of each class.
        k: Images of each class.

    Returns:
        Places of the images, rising, and the column of each one's class.

    Raises:
        ValueError: If `k` is out of range or a probability is none.
    """
    _check(chances, k)
    return _shared_out(chances, torch.ones_like(chances, dtype=torch.bool), k)


def candidates(
    chances: Float[Tensor, "u t"], alpha: float, beta: float, k: int
) -> tuple[Int[Tensor, " p"], Bool[Tensor, "p t"]]:
    """The candidate labels of CPL (arXiv:2406.10502, sec. 3), for the `k` most confident images of each class.

    A class is a candidate of an image if it is among the image's most probable ones, the fewest that together reach
    `tau`, and if the image is among those that the class is most probable for: at or above the class's
    `beta`-quantile. `tau` is the `alpha`-quantile of the images' highest probabilities. An image without a candidate
    is left out. The others are shared out as in `confident`, each over its candidates, and keep all of them.

    Args:
        chances: Probability of each class; an image's sum to 1.
        alpha: Which quantile, in [0, 1]. The release gives it as a percentage.
        beta: Which quantile, in [0, 1].
        k: Images of each class.

    Returns:
        Places of the images, rising, and the candidates of each.

    Raises:
        ValueError: If a value is out of range, a probability is none, or no image has a candidate.
    """
    _check(chances, k)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: it must be in [0, 1], the share of a quantile")
    exact = chances.double()
    tau = torch.quantile(exact.amax(dim=1), alpha)
    ranked, order = exact.sort(dim=1, descending=True, stable=True)
    before = torch.nn.functional.pad(ranked.cumsum(dim=1)[:, :-1], (1, 0))  # what the more probable ones reach
    within = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, before < tau)
    # A column at a time: torch's quantile takes 16 million numbers at most.
    least = torch.stack([torch.quantile(column, beta) for column in exact.unbind(dim=1)])
    allowed = within & (exact >= least)
    if not bool(allowed.any()):
        raise ValueError(f"alpha={alpha} and beta={beta} leave no image a candidate label; lower beta or raise alpha")
    places, _ = _shared_out(chances, allowed, k)
    return places, allowed[places]


def leaderboard(chances: Float[Tensor, "u t"], k: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """What GRIP's release takes for the `k` most confident images of each class (`quirks=release`).

    Images come one by one. One that its own class's board has no room for tries all other boards, and may stand on
    several; one that is pushed off a board tries none. A full board compares with the last on it, which is the worst
    only once it has been sorted. So labels depend on the order of the pool, and an image may get two.

    Args:
        chances: Probability of each class.
        k: Images of each class.

    Returns:
        Places of the images and columns of their classes, board by board.

    Raises:
        ValueError: If `k` is out of range or a probability is none.
    """
    _check(chances, k)
    boards: list[list[tuple[float, int]]] = [[] for _ in range(chances.shape[1])]

    def enters(label: int, entry: tuple[float, int]) -> bool:
        board = boards[label]
        if len(board) < k:
            board.append(entry)
        elif board[-1][0] < entry[0]:
            boards[label] = sorted([*board, entry], reverse=True)[:k]
        else:
            return False
        return True

    for place, row in enumerate(chances.tolist()):
        own = row.index(max(row))
        if not enters(own, (row[own], place)):
            for chance, label in sorted(zip(row, range(len(row)), strict=True), reverse=True):
                if label != own:
                    enters(label, (chance, place))
    stands = [(place, label) for label, board in enumerate(boards) for _, place in board]
    places, labels = torch.tensor(stands, device=chances.device).unbind(dim=1)
    return places, labels


def _check(chances: Tensor, k: int) -> None:
    check_k(k, len(chances))
    if not bool(chances.isfinite().all()) or bool((chances < 0).any()):
        raise ValueError("probabilities hold what is no number or below 0: look at the features that they come from")


def _shared_out(chances: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each image to at most one class that is allowed, each class to at most `k` images, the most probable first.

    Since images and classes go by the same numbers, this is also what CPL's release reaches by images that ask their
    classes in turn and are pushed out by better ones: the only stable matching, but for equals.
    """
    images, classes = chances.shape
    pairs = allowed.flatten().nonzero().flatten()
    order = pairs[chances.flatten()[pairs].argsort(descending=True, stable=True)]
    labels, room = [-1] * images, [k] * classes
    left = min(images, k * classes)
    for pair in order.tolist():
        place, label = divmod(pair, classes)
        if labels[place] < 0 and room[label]:
            labels[place], room[label], left = label, room[label] - 1, left - 1
            if not left:
                break
    found = torch.tensor(labels, device=chances.device)
    places = (found >= 0).nonzero().flatten()
    return places, found[places]
