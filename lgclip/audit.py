"""Whether a run's figure is clean: test images among the synthetic ones, and what each stage saw."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from PIL import Image
from scipy.fft import dctn
from tqdm import tqdm

from lgclip.exposure import SEEN, exposure, verdicts
from lgclip.reopen import Reopened, reopen
from lgclip.runs import Run
from lgclip.scales import WHOLE

RARE = 0.01
"""A pair is near if at most this share of the test images are as near to another test image."""

MOST_BITS = 10
"""Differing bits of two picture hashes (of 64) beyond which a pair is never near."""

_REFERENCE, _ROWS, _SHOWN = 2000, 256, 10


def audit(run: Run) -> dict[str, Any]:
    """Looks for test images among a run's synthetic images, and says what each stage saw.

    Every image is decoded once, which takes some minutes for tens of thousands.

    Args:
        run: The run.

    Returns:
        `run`, `method`, `duplicates` (None if no synthetic image was used), `exposure` (one row a
        stage) and `verdicts`; plain values, for JSON.

    Raises:
        ValueError: If the run's images or features are not there any more.
    """
    seen, method = exposure(run.result), run.result["method"]
    opened = reopen(run)
    return {
        "run": str(run.folder),
        "method": method,
        "duplicates": _duplicates(opened) if opened.drawing else None,
        "exposure": seen,
        "verdicts": verdicts(seen, method),
    }


@dataclass(frozen=True)
class _Space:
    """One way to compare pictures.

    Attributes:
        synthetic: The synthetic images, one row each.
        test: The test images.
        likeness: Of each of some rows with each of others; the higher, the more alike.
        bounds: Least and greatest likeness that the threshold may have; equal pictures reach the greatest.
    """

    synthetic: np.ndarray
    test: np.ndarray
    likeness: Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "q n"]]
    bounds: tuple[float, float]

    def threshold(self) -> float:
        """The likeness that `RARE` test images have with their nearest other test image, over at most 2,000."""
        n = len(self.test)
        if n < 2:
            return self.bounds[1]
        nearest = []
        for rows in _parts(np.unique(np.linspace(0, n - 1, min(n, _REFERENCE)).astype(np.int64))):
            likeness = self.likeness(self.test[rows], self.test)
            likeness[np.arange(len(rows)), rows] = -np.inf
            nearest.append(likeness.max(axis=1))
        rare = np.quantile(np.concatenate(nearest), 1 - RARE, method="higher")
        return float(np.clip(rare, *self.bounds))

    def nearest(self) -> Int[np.ndarray, " m"]:
        """Of each synthetic image, the test image most like it."""
        parts = _parts(np.arange(len(self.synthetic)))
        return np.concatenate([self.likeness(self.synthetic[rows], self.test).argmax(axis=1) for rows in parts])

    def between(self, synthetic: int, test: int) -> float:
        """Likeness of one pair."""
        return float(self.likeness(self.synthetic[[synthetic]], self.test[[test]])[0, 0])


def _parts(rows: Int[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " q"]]:
    return (rows[at : at + _ROWS] for at in range(0, len(rows), _ROWS))


def _duplicates(opened: Reopened) -> dict[str, Any]:
    assert opened.drawing is not None
    drawing, dataset = opened.drawing, opened.dataset
    of_synthetic = _read(drawing.image, len(drawing.ids), "synthetic images")
    of_test = _read(dataset.image, len(dataset), "test images")
    view, features = _features(opened)
    spaces = {
        "features": _Space(*features, _cosines, (-1.0, 1 - 1e-5)),
        "hash": _Space(of_synthetic[1], of_test[1], _agreement, (-float(MOST_BITS), 0.0)),
    }
    thresholds = {way: space.threshold() for way, space in spaces.items()}
    candidates = set(_equal(of_synthetic[0], of_test[0]))
    for space in spaces.values():
        candidates |= set(enumerate(space.nearest().tolist()))
    pairs = []
    for at, other in sorted(candidates):
        likeness = {way: space.between(at, other) for way, space in spaces.items()}
        found = ["pixels"] if of_synthetic[0][at] == of_test[0][other] else []
        found += [way for way in spaces if likeness[way] >= thresholds[way]]
        if found:
            figures = {"cosine": likeness["features"], "bits": int(-likeness["hash"]), "found_by": found}
            pairs.append({**_pair(opened, at, other), **figures})
    pairs.sort(key=lambda pair: ("pixels" not in pair["found_by"], -len(pair["found_by"]), -pair["cosine"]))
    ways = ("pixels", *spaces)
    return {
        "synthetic_images": len(drawing.ids),
        "test_images": len(dataset),
        "view": view,
        "rare": RARE,
        "cosine_threshold": thresholds["features"],
        "bits_threshold": int(-thresholds["hash"]),
        "found": {way: len({p["synthetic"] for p in pairs if way in p["found_by"]}) for way in ways},
        "pairs": pairs,
    }


def _features(opened: Reopened) -> tuple[str, tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "n d"]]]:
    """The whole view where there is one: a crop is placed by an image's id, so copies have other crops."""
    stored = [opened.streams[name].features() for name in ("synthetic", "real")]
    if WHOLE in opened.scales.views:
        at = opened.scales.views.index(WHOLE)
        synthetic, test = (views[:, at].numpy() for views in stored)
        return WHOLE, (synthetic, test)
    synthetic, test = (opened.scales.fuse(views).numpy() for views in stored)
    return "all views", (synthetic, test)


def _cosines(rows: Float[np.ndarray, "q d"], others: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "q n"]:
    return rows @ others.T


def _agreement(rows: UInt64[np.ndarray, " q"], others: UInt64[np.ndarray, " n"]) -> Float[np.ndarray, "q n"]:
    return -np.bitwise_count(rows[:, None] ^ others).astype(np.float32)


def _read(image: Callable[[int], Image.Image], n: int, what: str) -> tuple[list[bytes], UInt64[np.ndarray, " n"]]:
    """Digest of the pixels, and picture hash, of each image."""
    digests, hashes = [], []
    for at in tqdm(range(n), desc=what, unit="image", leave=False, disable=None):
        picture = image(at)
        digests.append(hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest())
        hashes.append(picture_hash(picture))
    return digests, np.array(hashes, dtype=np.uint64)


def picture_hash(image: Image.Image) -> int:
    """64 bits that stay nearly the same when an image is resized, compressed or brightened (pHash).

    Which of the 8 x 8 lowest frequencies of the grey image at 32 x 32 are above their median
    (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, sec. 3.2.1).
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = np.asarray(dctn(grey))[:8, :8]
    above: Bool[np.ndarray, "8 8"] = low > np.median(low)
    return int.from_bytes(np.packbits(above).tobytes())


def _equal(synthetic: list[bytes], test: list[bytes]) -> list[tuple[int, int]]:
    places: dict[bytes, list[int]] = {}
    for at, digest in enumerate(test):
        places.setdefault(digest, []).append(at)
    return [(at, other) for at, digest in enumerate(synthetic) for other in places.get(digest, ())]


def _pair(opened: Reopened, at: int, other: int) -> dict[str, Any]:
    assert opened.drawing is not None
    drawing, dataset = opened.drawing, opened.dataset
    prompt, label = drawing.prompts[at], dataset.labels[other]
    return {
        "synthetic": at,
        "synthetic_id": drawing.ids[at],
        "synthetic_class": prompt.class_index,
        "synthetic_name": dataset.class_names[prompt.class_index],
        "prompt": prompt.text,
        "file": str(drawing.paths[at]),
        "test": dataset.places[other],
        "test_id": dataset.ids[other],
        "test_class": label,
        "test_name": dataset.class_names[label],
    }


def audit_text(found: dict[str, Any]) -> str:
    """What `audit` found, for the eye."""
    lines = [f"{found['run']}, method {found['method']}", ""]
    if found["duplicates"] is None:
        lines.append("no synthetic image was used")
    else:
        lines += _duplicates_text(found["duplicates"])
    words = {True: "yes", False: "-", None: "?"}
    lines += ["", f"{'stage':<12} {'real labels':<12} {'test images':<12} {'text tower':<11} with what"]
    for row in found["exposure"]:
        labels, images, tower = (words[row[what]] for what in SEEN)
        lines.append(f"{row['stage']:<12} {labels:<12} {images:<12} {tower:<11} {row['note']}")
    return "\n".join([*lines, "", *found["verdicts"]])


def _duplicates_text(told: dict[str, Any]) -> list[str]:
    n, found, rare = told["synthetic_images"], told["found"], f"{100 * told['rare']:g}%"
    lines = [
        f"{n} synthetic against {told['test_images']} test images; near is as near as {rare} of the test images are "
        "to another test image",
        f"same pixels   {found['pixels']:>6} synthetic images",
        f"near features {found['features']:>6} at a cosine of {told['cosine_threshold']:.4f} or more ({told['view']})",
        f"near hash     {found['hash']:>6} at {told['bits_threshold']} or fewer of 64 bits",
    ]
    for pair in told["pairs"][:_SHOWN]:
        lines.append(
            f"  {', '.join(pair['found_by'])}: cosine {pair['cosine']:.4f}, {pair['bits']} bits; "
            f"{pair['synthetic_name']!r} drawn from {pair['prompt']!r} ({pair['file']}) "
            f"and test image {pair['test']} of {pair['test_name']!r}"
        )
    more = len(told["pairs"]) - _SHOWN
    return [*lines, f"  and {more} pairs more, see --json"] if more > 0 else lines
