"""Audits a run for data leakage: test images among the synthetic ones, and the data that each stage used."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from PIL import Image
from scipy.fft import dctn
from tqdm import tqdm

from lgclip.encoder.scales import FULL_IMAGE
from lgclip.reporting.data_exposure import SEEN, conclusions, exposure
from lgclip.reporting.restore import RestoredRun, restore_run
from lgclip.reporting.run_folder import Run
from lgclip.reporting.text_tables import text_table

# A fixed cosine would mean different things for different encoders and data sets. So the test images are the yardstick:
# as near as only their nearest 1% are to each other.
RARE = 0.01
"""A pair is near if at most this fraction of the test images is as near to another test image."""

MOST_BITS = 10
"""Maximum Hamming distance of two perceptual hashes (64 bits) of a near pair."""

_REFERENCE = 2000  # test images that the threshold is estimated from
_ROWS = 256  # images that are compared with all others at once; bounds the memory of the matrix
_MAX_LISTED = 10  # pairs in the text; --json has all


def audit(run: Run) -> dict[str, Any]:
    """Searches for test images among a run's synthetic images, and reports which data each stage used.

    Every image is decoded once, which takes some minutes for tens of thousands.

    Args:
        run: The run.

    Returns:
        `run`, `method`, `duplicates` (None if no synthetic image was used, or they were not stored), `images_stored`,
        `exposure` (one row per stage) and `verdicts`; plain values, for JSON.

    Raises:
        ValueError: If the run's images or features do not exist any more.
    """
    rows = exposure(run.result)
    method = run.result.method
    restored = restore_run(run)
    images = restored.synthetic_images
    # Thumbnails are no substitute: they have other pixels, and only a few images have one.
    duplicates = _duplicates(restored) if images is not None and images.are_stored else None
    return {
        "run": str(run.folder),
        "method": method,
        "duplicates": duplicates,
        "images_stored": images.are_stored if images is not None else None,
        "exposure": [asdict(row) for row in rows],
        "verdicts": conclusions(rows, method),
    }


@dataclass(frozen=True)
class _Space:
    """Defines one way to compare images.

    Attributes:
        synthetic: The synthetic images, one row each.
        test: The test images.
        similarity: Computes the similarity of each row of one array to each of another.
        bounds: Minimum and maximum of the threshold; identical images reach the maximum.
    """

    synthetic: np.ndarray
    test: np.ndarray
    similarity: Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "q n"]]
    bounds: tuple[float, float]

    def threshold(self) -> float:
        """Returns the similarity that `RARE` test images have to their nearest other test image, over at most 2,000."""
        n = len(self.test)
        if n < 2:
            return self.bounds[1]
        # Evenly spaced and not the first ones, because data sets are often sorted by class.
        nearest = []
        for rows in _parts(np.unique(np.linspace(0, n - 1, min(n, _REFERENCE)).astype(np.int64))):
            similarity = self.similarity(self.test[rows], self.test)
            similarity[np.arange(len(rows)), rows] = -np.inf  # each image is nearest to itself
            nearest.append(similarity.max(axis=1))
        # "higher" takes a value that occurs: hash distances are whole numbers, and interpolation would invent others.
        rare = np.quantile(np.concatenate(nearest), 1 - RARE, method="higher")
        # The clip keeps copies found where many test images are equal, and far pairs out where all are unlike.
        return float(np.clip(rare, *self.bounds))

    def nearest(self) -> Int[np.ndarray, " m"]:
        """Returns for each synthetic image the most similar test image."""
        parts = _parts(np.arange(len(self.synthetic)))
        return np.concatenate([self.similarity(self.synthetic[rows], self.test).argmax(axis=1) for rows in parts])

    def between(self, synthetic: int, test: int) -> float:
        """Returns the similarity of one pair."""
        return float(self.similarity(self.synthetic[[synthetic]], self.test[[test]])[0, 0])


def _parts(rows: Int[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " q"]]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _duplicates(restored: RestoredRun) -> dict[str, Any]:
    assert restored.synthetic_images is not None
    synthetic_images = restored.synthetic_images
    dataset = restored.dataset
    of_synthetic = _read(synthetic_images.image, len(synthetic_images.ids), "synthetic images")
    of_test = _read(dataset.image, len(dataset), "test images")
    view, features = _features(restored)
    spaces = {
        # 1 - 1e-5: the cosine of equal images differs from 1 by the rounding of float32.
        "features": _Space(*features, _cosines, (-1.0, 1 - 1e-5)),
        "hash": _Space(of_synthetic[1], of_test[1], _hash_similarity, (-float(MOST_BITS), 0.0)),
    }
    thresholds = {space_name: space.threshold() for space_name, space in spaces.items()}
    # All equal pairs, but of near ones only the nearest test image of each synthetic image in each space: all pairs
    # above the threshold may be millions.
    candidates = set(_equal(of_synthetic[0], of_test[0]))
    for space in spaces.values():
        candidates |= set(enumerate(space.nearest().tolist()))
    pairs = []
    for synthetic, test in sorted(candidates):
        similarity = {space_name: space.between(synthetic, test) for space_name, space in spaces.items()}
        matched_by = [space_name for space_name in spaces if similarity[space_name] >= thresholds[space_name]]
        if of_synthetic[0][synthetic] == of_test[0][test]:
            matched_by.insert(0, "pixels")
        if matched_by:
            values = {"cosine": similarity["features"], "bits": int(-similarity["hash"]), "found_by": matched_by}
            pairs.append({**_pair(restored, synthetic, test), **values})
    # The surest first: equal pixels, then pairs that several ways agree on.
    pairs.sort(key=lambda pair: ("pixels" not in pair["found_by"], -len(pair["found_by"]), -pair["cosine"]))
    # Counts are of synthetic images: one of them may equal several test images.
    counts = {}
    for space_name in ("pixels", *spaces):
        counts[space_name] = len({pair["synthetic"] for pair in pairs if space_name in pair["found_by"]})
    return {
        "synthetic_images": len(synthetic_images.ids),
        "test_images": len(dataset),
        "view": view,
        "rare": RARE,
        "cosine_threshold": thresholds["features"],
        "bits_threshold": int(-thresholds["hash"]),
        "found": counts,
        "pairs": pairs,
    }


def _features(restored: RestoredRun) -> tuple[str, tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "n d"]]]:
    """Returns the features of the full view if there is one: crops depend on an image's id, so copies have others."""
    stored = [restored.streams[name].features() for name in ("synthetic", "real")]
    if FULL_IMAGE in restored.scales.views:
        view = restored.scales.views.index(FULL_IMAGE)
        synthetic, test = (views[:, view].numpy() for views in stored)
        return FULL_IMAGE, (synthetic, test)
    synthetic, test = (restored.scales.fuse(views).numpy() for views in stored)
    return "all views", (synthetic, test)


def _cosines(rows: Float[np.ndarray, "q d"], references: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "q n"]:
    return rows @ references.T


def _hash_similarity(rows: UInt64[np.ndarray, " q"], references: UInt64[np.ndarray, " n"]) -> Float[np.ndarray, "q n"]:
    # Minus the Hamming distance, so that in both spaces a higher value means more alike.
    return -np.bitwise_count(rows[:, None] ^ references).astype(np.float32)


def _read(image: Callable[[int], Image.Image], n: int, label: str) -> tuple[list[bytes], UInt64[np.ndarray, " n"]]:
    """Returns the digest of the pixels, and the perceptual hash, of each image."""
    digests = []
    hashes = []
    for index in tqdm(range(n), desc=label, unit="image", leave=False, disable=None):
        decoded = image(index)
        # With the size: images of 2 x 8 and 4 x 4 equal pixels have the same bytes.
        digests.append(hashlib.sha256(f"{decoded.size}".encode() + decoded.tobytes()).digest())
        hashes.append(image_hash(decoded))
    return digests, np.array(hashes, dtype=np.uint64)


def image_hash(image: Image.Image) -> int:
    """Computes 64 bits that stay nearly the same when an image is resized, compressed or brightened (pHash).

    Each bit tells whether one of the 8 x 8 lowest frequencies of the gray image at 32 x 32 is above their median
    (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, sec. 3.2.1).
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = np.asarray(dctn(grey))[:8, :8]
    # The median makes half of the bits 1 whatever the contrast is.
    above: Bool[np.ndarray, "8 8"] = low > np.median(low)
    return int.from_bytes(np.packbits(above).tobytes())


def _equal(synthetic: list[bytes], test: list[bytes]) -> list[tuple[int, int]]:
    places: dict[bytes, list[int]] = {}
    for test_index, digest in enumerate(test):
        places.setdefault(digest, []).append(test_index)
    pairs = []
    for index, digest in enumerate(synthetic):
        pairs += [(index, test_index) for test_index in places.get(digest, ())]
    return pairs


def _pair(restored: RestoredRun, index: int, test_index: int) -> dict[str, Any]:
    assert restored.synthetic_images is not None
    synthetic_images = restored.synthetic_images
    dataset = restored.dataset
    prompt = synthetic_images.prompts[index]
    label = dataset.labels[test_index]
    return {
        "synthetic": index,
        "synthetic_id": synthetic_images.ids[index],
        "synthetic_class": prompt.class_index,
        "synthetic_name": dataset.class_names[prompt.class_index],
        "prompt": prompt.text,
        "file": str(synthetic_images.paths[index]),
        "test": dataset.places[test_index],
        "test_id": dataset.ids[test_index],
        "test_class": label,
        "test_name": dataset.class_names[label],
    }


def audit_text(report: dict[str, Any]) -> str:
    """Formats the output of `audit` as text."""
    lines = [f"{report['run']}, method {report['method']}", ""]
    if report["images_stored"] is False:
        lines.append(
            "the synthetic images were not stored (paths.images=sheet or none), so that none is compared with the test "
            "images; run it again with paths.images=files"
        )
    elif report["duplicates"] is None:
        lines.append("no synthetic image was used")
    else:
        lines += _duplicates_text(report["duplicates"])
    words = {True: "yes", False: "-", None: "?"}
    rows = []
    for row in report["exposure"]:
        cells = [words[row[label]] for label in SEEN]
        rows.append([row["stage"], *cells, row["note"]])
    table = text_table(
        ("stage", "real labels", "test images", "unlabelled", "text tower", "with what"), rows, left_columns=6
    )
    return "\n".join([*lines, "", table, "", *report["verdicts"]])


def _duplicates_text(duplicates: dict[str, Any]) -> list[str]:
    n = duplicates["synthetic_images"]
    report = duplicates["found"]
    rare = f"{100 * duplicates['rare']:g}%"
    lines = [
        f"{n} synthetic against {duplicates['test_images']} test images; near is as near as {rare} of the test "
        f"images are "
        "to another test image",
        f"same pixels   {report['pixels']:>6} synthetic images",
        f"near features {report['features']:>6} at a cosine of {duplicates['cosine_threshold']:.4f} or more "
        f"({duplicates['view']})",
        f"near hash     {report['hash']:>6} at {duplicates['bits_threshold']} or fewer of 64 bits",
    ]
    for pair in duplicates["pairs"][:_MAX_LISTED]:
        lines.append(
            f"  {', '.join(pair['found_by'])}: cosine {pair['cosine']:.4f}, {pair['bits']} bits; "
            f"{pair['synthetic_name']!r} generated from {pair['prompt']!r} ({pair['file']}) "
            f"and test image {pair['test']} of {pair['test_name']!r}"
        )
    remaining = len(duplicates["pairs"]) - _MAX_LISTED
    if remaining > 0:
        lines.append(f"  and {remaining} pairs more, see --json")
    return lines
