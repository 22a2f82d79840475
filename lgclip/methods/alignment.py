"""Aligns real images with synthetic ones: removes the mean of each side, the real one from unlabelled images.

Letters in shapes: u unlabelled images; see `lgclip.types` for the others.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Scorer
from lgclip.store.atomic import atomic_write
from lgclip.types import TEST, TRAINING

ALIGNMENT = "alignment.safetensors"
"""File of a run's alignment, in its folder."""

AUTO = "auto"
ESTIMATED = "estimated"
EQUAL = "equal"
SHARES = (AUTO, ESTIMATED, EQUAL)
"""Assumptions on the classes' shares of the unlabelled images; `auto` takes the offset that fits better."""


_ROWS = 1024
"""Images compared with all class means at once."""


class FittedAlignment(NamedTuple):
    """Maps real and synthetic features into one space, in which both have the mean 0.

    Attributes:
        pool_mean: Mean feature of the unlabelled images.
        offset: Estimated difference between the means of real and synthetic images of the same classes. It stays the
            same when classes are added or removed. None if there were no synthetic images.
        images: Number of unlabelled images that it was estimated from.
        source: Where they are from, for people.
    """

    pool_mean: Float[Tensor, " d"]
    offset: Float[Tensor, " d"] | None
    images: int
    source: str

    def real(self, features: Float[Tensor, "q d"], support: SupportSet | None) -> Float[Tensor, "q d"]:
        """Returns the aligned unit features of real images.

        Args:
            features: Their unit features.
            support: The synthetic images, before the alignment; None if text alone represents the classes.
        """
        return _centered(features, self.real_mean(support))

    def real_mean(self, support: SupportSet | None) -> Float[Tensor, " d"]:
        """Returns the mean that is removed from real images; the argument is that of `real`."""
        if support is None:
            return self.pool_mean
        assert self.offset is not None
        return _mean(support.features) + self.offset

    def scorer(self, scorer: Scorer, support: SupportSet | None) -> Scorer:
        """Returns a scorer that aligns the features of real images first.

        Args:
            scorer: Scorer of aligned features.
            support: The synthetic images, before the alignment; None if text alone represents the classes.
        """
        return lambda features: scorer(self.real(features, support))

    def references(self, references: References, base: References | None = None) -> References:
        """Returns the aligned synthetic images, text prototypes and real shots.

        Args:
            references: Their features, before the alignment.
            base: Those of the classes, whose means are removed; None if they are `references` themselves.
        """
        support = references.support
        base = base or references
        shots = references.shots
        text = references.text
        if shots is not None:
            shots = shots._replace(features=self.real(shots.features, base.support))
        if support is not None:
            assert base.support is not None
            full_image = support.full_image
            if full_image is not None:
                full_image = _centered(full_image, _mean(full_image))
            support = support._replace(
                features=_centered(support.features, _mean(base.support.features)), full_image=full_image
            )
        if text is not None:
            assert base.text is not None
            text = _centered(text, _mean(base.text))
        return References(support, text, shots)

    def described(self) -> dict[str, object]:
        """Returns plain values, for the report."""
        norm = None if self.offset is None else float(self.offset.norm())
        return {"images": self.images, "source": self.source, "offset_norm": norm}


class Alignment(ABC):
    """Estimates how real images differ from synthetic ones: a value of config group `align`."""

    key_name: ClassVar[str]

    @property
    @abstractmethod
    def pool(self) -> str | None:
        """Returns where its unlabelled images are from: `training`, `test` or a folder; None if it needs none."""

    @property
    def limit(self) -> int | None:
        """Returns the maximum number of unlabelled images; None for all."""
        return None

    def check(self, count: int) -> None:
        """Checks the number of unlabelled images, before anything is generated or encoded.

        Raises:
            ValueError: If there are too few.
        """
        del count

    @abstractmethod
    def fit(self, features: Float[Tensor, "u d"] | None, references: References) -> FittedAlignment:
        """Returns the fitted alignment.

        Args:
            features: Unit features of the unlabelled images.
            references: What they are compared with. Without synthetic images the mean of the unlabelled ones is used.

        Raises:
            ValueError: If there are too few images.
        """


@dataclass(frozen=True)
class PoolAlignment(Alignment):
    """Removes the mean feature of unlabelled real images from real ones, that of synthetic images from those.

    A difference of the domains, such as noise or another style, moves all images alike, and is thus removed. The offset
    between the domains is `mean(pool) - sum_c share_c mean_c`, with the classes' shares of the pool. Plain means, which
    are common, take the shares as `equal`: right for a pool with all classes, but one with few of them would lose what
    distinguishes these. `estimated` shares count the nearest prototypes: right for any classes, unless a large
    offset misleads them. `auto` takes the one that leaves the pool nearer to the class means.

    Args:
        images: Source of the unlabelled images: `training`, the data set's training split; `test`, the evaluated images
            themselves, which makes the result transductive; or a folder, which is searched with its sub-folders.
        limit: Maximum number of unlabelled images, evenly spaced; None for all.
        least: Minimum number of images.
        shrinkage: Number of images that count as evidence for no difference: the offset is scaled by
            `u / (u + shrinkage)`.
        shares: `auto`, `estimated` or `equal`.

    Raises:
        ValueError: If a value is out of range.
    """

    key_name: ClassVar[str] = "PoolAlignment"

    images: str = TRAINING
    limit: int | None = 2000  # pyright: ignore[reportIncompatibleMethodOverride]
    least: int = 10
    shrinkage: float = 5.0
    shares: str = AUTO

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"align.least={self.least}: it must be at least 1")
        if self.limit is not None and self.limit < self.least:
            raise ValueError(f"align.limit={self.limit}: it must be at least align.least={self.least}, or null for all")
        if not 0 <= self.shrinkage < float("inf"):
            raise ValueError(f"align.shrinkage={self.shrinkage}: it must be at least 0")
        if self.shares not in SHARES:
            raise ValueError(f"align.shares={self.shares}: choose {', '.join(SHARES)}")
        if self.images not in (TRAINING, TEST) and not Path(self.images).expanduser().is_dir():
            raise ValueError(
                f"align.images={self.images}: choose {TRAINING}, {TEST}, or a folder of images that exists"
            )

    @property
    def pool(self) -> str:
        return self.images

    def check(self, count: int) -> None:
        if count < self.least:
            raise ValueError(
                f"align.images={self.images}: {count} unlabelled images, and align.least={self.least}; give more, or "
                "use align=none"
            )

    def fit(self, features: Float[Tensor, "u d"] | None, references: References) -> FittedAlignment:
        assert features is not None
        count = len(features)
        self.check(count)
        pool_mean = _mean(features)
        offset: Tensor | None = None
        support = references.support
        if support is not None:
            candidates: list[Tensor] = []
            if self.shares != EQUAL:
                candidates.append(pool_mean - _expected_mean(features, support))
            if self.shares != ESTIMATED:
                candidates.append(pool_mean - _mean(support.features))
            # The first among equals: it is right whichever classes the pool holds.
            offset = min(candidates, key=lambda candidate: _distance(features - candidate, support))
            offset = offset * (count / (count + self.shrinkage))
        return FittedAlignment(pool_mean, offset, count, self.images)


def _expected_mean(features: Float[Tensor, "u d"], support: SupportSet) -> Float[Tensor, " d"]:
    """Returns the mean of synthetic images with the classes' shares of the pool."""
    predicted = (features @ support.means(renormalize=True).T).argmax(dim=1)
    shares = torch.bincount(predicted, minlength=support.num_classes).double() / len(features)
    return (shares @ support.means(renormalize=False).double()).to(features)


def _distance(features: Float[Tensor, "u d"], support: SupportSet) -> float:
    """Returns the mean distance of images to the nearest class mean."""
    means = support.means(renormalize=False)
    nearest = [torch.cdist(block, means).amin(dim=1) for block in features.split(_ROWS)]
    return float(torch.cat(nearest).double().mean())


@dataclass(frozen=True)
class StoredAlignment(Alignment):
    """Uses the alignment that an earlier run has estimated.

    Args:
        path: `alignment.safetensors` of the run, or its folder.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """

    key_name: ClassVar[str] = "StoredAlignment"

    path: str

    def __post_init__(self) -> None:
        self.stored()  # a wrong path is an error before anything is computed

    @property
    def pool(self) -> None:
        return None

    def stored(self) -> FittedAlignment:
        """Reads the alignment.

        Raises:
            ValueError: If there is no such file, or it is damaged.
        """
        path = Path(self.path).expanduser()
        return read_alignment(path / ALIGNMENT if path.is_dir() else path)

    def fit(self, features: Float[Tensor, "u d"] | None, references: References) -> FittedAlignment:
        fitted = self.stored()
        support = references.support
        if support is not None and fitted.offset is None:
            raise ValueError(f"align.path={self.path}: it was made without synthetic images; use it with clip_text")
        width = len(fitted.pool_mean)
        for compared in (references.text, None if support is None else support.features):
            if compared is not None and compared.shape[1] != width:
                raise ValueError(
                    f"align.path={self.path}: its features have {width} dimensions, those of this encoder "
                    f"{compared.shape[1]}; use the encoder that it was made with"
                )
        device = references.text if support is None else support.features
        assert device is not None
        offset = None if fitted.offset is None else fitted.offset.to(device)
        return fitted._replace(pool_mean=fitted.pool_mean.to(device), offset=offset)


def write_alignment(path: Path, fitted: FittedAlignment) -> None:
    """Writes an alignment as a safetensors file."""
    tensors = alignment_tensors(fitted)
    metadata = {"images": str(fitted.images), "source": fitted.source}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def alignment_tensors(fitted: FittedAlignment) -> dict[str, Tensor]:
    """Returns the tensors of an alignment, for a file."""
    tensors = {"pool_mean": fitted.pool_mean.float().cpu().contiguous()}
    if fitted.offset is not None:
        tensors["offset"] = fitted.offset.float().cpu().contiguous()
    return tensors


def read_alignment(path: Path) -> FittedAlignment:
    """Reads the file that `write_alignment` writes.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a run with align=pool writes {ALIGNMENT} into its folder")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return FittedAlignment(tensors["pool_mean"], tensors.get("offset"), int(metadata["images"]), metadata["source"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no alignment, or damaged: {error}; make it again with align=pool") from error


def _mean(features: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    # In double precision the sum is the same to the last shown digit whatever the order.
    return features.double().mean(dim=0).to(features)


def _centered(features: Float[Tensor, "n d"], mean: Float[Tensor, " d"]) -> Float[Tensor, "n d"]:
    return normalize(features - mean, dim=1)
