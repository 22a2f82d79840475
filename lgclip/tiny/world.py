"""Renders the small world: 64x64 images of one object, shape x color x pattern.

An image is a pure function of (split, index). Thirty classes, one color of every (shape, pattern)
pair, are held out: they are the zero-shot classes, and no small model is trained on them. The split
`train` has images of them too: for students, never for the models that come with the package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

Split = Literal["pretrain", "test", "train"]

SIZE = 64
"""Height and width of every image, in pixels."""

SHAPES = (
    "circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "arrow", "flower"
)  # fmt: skip
COLORS = {
    "red": (0.88, 0.12, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.92, 0.15),
    "green": (0.10, 0.68, 0.18),
    "cyan": (0.15, 0.88, 0.92),
    "blue": (0.12, 0.25, 0.95),
    "purple": (0.58, 0.15, 0.80),
    "white": (0.97, 0.97, 0.97),
}
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.05),
    "grey": (0.42, 0.42, 0.42),
    "brown": (0.36, 0.25, 0.16),
    "navy": (0.10, 0.12, 0.27),
    "olive": (0.26, 0.30, 0.14),
}
TEST_IMAGES_PER_CLASS = 40
TRAIN_IMAGES_PER_CLASS = 100
_STREAMS: dict[Split, int] = {"pretrain": 1, "test": 2, "train": 3}
"""Number of each split's own random stream."""
_PER_CLASS: dict[Split, int] = {"test": TEST_IMAGES_PER_CLASS, "train": TRAIN_IMAGES_PER_CLASS}
"""Number of images of each held-out class, in the order of the classes."""

SCANNED_DIGITS = tuple(
    f"handwritten digit {word}"
    for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
"""Class names of the scanned digits, which share the small world's pre-training."""


@dataclass(frozen=True)
class Kind:
    """Describes a class of objects, e.g. a striped red star."""

    shape: str
    color: str
    pattern: str

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.color} {self.shape}"


def _kinds() -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Splits the 240 classes into (seen, held out): one color of every (shape, pattern) is held out."""
    colors = tuple(COLORS)
    seen_kinds: list[Kind] = []
    held_out: list[Kind] = []
    for s, shape in enumerate(SHAPES):
        for p, pattern in enumerate(PATTERNS):
            for c, color in enumerate(colors):
                kind = Kind(shape, color, pattern)
                # 3 and 5 are prime to 8: each shape loses three different colors, each color
                # is lost by three to five shapes.
                if c == (3 * s + 5 * p) % len(colors):
                    held_out.append(kind)
                else:
                    seen_kinds.append(kind)
    return tuple(seen_kinds), tuple(held_out)


SEEN_KINDS, HELD_OUT_KINDS = _kinds()


@dataclass(frozen=True)
class Scene:
    """Describes the content of an image: the object, and the nuisances that a classifier must ignore.

    Attributes:
        kind: The object.
        size: Half the object's extent, as a fraction of the image's side.
        center: (x, y) of the object's center, from (0, 0) top left to (1, 1) bottom right.
        angle: Rotation in degrees, positive clockwise.
        background: Name of the background color.
        shade: Strength of the light falling off across the object, 0 to 1.
        noise: Standard deviation of the pixel noise, in units of the full range.
    """

    kind: Kind
    size: float
    center: tuple[float, float]
    angle: float
    background: str
    shade: float
    noise: float


# Distances are signed: negative inside. (x, y) has y pointing down and the object inside [-1, 1]^2.
Field = Float[np.ndarray, "h w"]


def _polygon(x: Field, y: Field, corners: list[tuple[float, float]]) -> Field:
    """Computes the signed distance to a simple polygon: distance to the nearest edge, sign by crossing number."""
    distance = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        edge_x = x1 - x0
        edge_y = y1 - y0
        # The point of the edge that is nearest: the projection onto its line, kept between its two ends.
        along = ((x - x0) * edge_x + (y - y0) * edge_y) / (edge_x**2 + edge_y**2)
        along = np.clip(along, 0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - along * edge_x, y - y0 - along * edge_y))
        # A ray to the right crosses the border an odd number of times from inside. It meets no horizontal edge.
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < edge_x * (y - y0) / edge_y + x0)
    return np.where(inside, -distance, distance)


def _star(x: Field, y: Field) -> Field:
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    corners = [(r * np.sin(t), -r * np.cos(t)) for r, t in zip(radii, turns, strict=True)]
    return _polygon(x, y, corners)


def _heart(x: Field, y: Field) -> Field:
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    across = 16 * np.sin(turns) ** 3
    up = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return _polygon(x, y, [(a / 17, -u / 17) for a, u in zip(across, up, strict=True)])


_DISTANCE: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.88,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,
    "triangle": lambda x, y: _polygon(x, y, [(0, -0.95), (0.98, 0.75), (-0.98, 0.75)]),
    "star": _star,
    "heart": _heart,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.32),
        np.maximum(np.abs(x) - 0.32, np.abs(y) - 0.95),
    ),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.24,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.45, y)),
    "arrow": lambda x, y: _polygon(
        x, y,
        [(-0.95, -0.3), (0.05, -0.3), (0.05, -0.8), (0.98, 0), (0.05, 0.8), (0.05, 0.3), (-0.95, 0.3)],
    ),
    "flower": lambda x, y: np.hypot(x, y) - 0.72 - 0.26 * np.cos(5 * np.arctan2(y, x) + np.pi / 2),
}  # fmt: skip


def _ink(pattern: str, x: Field, y: Field) -> Field:
    """Computes the fraction of the second ink (a dark tone of the color) at each point, 0 or near 1."""
    if pattern == "striped":
        return np.clip(0.5 + 6 * np.sin(2 * np.pi * y / 0.5), 0, 1)
    if pattern == "dotted":
        step = 0.52
        to_dot = np.hypot((x + step / 2) % step - step / 2, (y + step / 2) % step - step / 2)
        return np.clip(0.5 + (0.165 - to_dot) * 14, 0, 1)
    return np.zeros_like(x)


def pixel_noise(source: np.random.Generator) -> Float[np.ndarray, "64 64 3"]:
    """Generates standard Gaussian noise by Box-Muller: NumPy guarantees a stable stream only for uniform numbers."""
    u, v = source.random((2, SIZE, SIZE, 3))
    return np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)


def render(scene: Scene, noise_source: np.random.Generator) -> UInt8[np.ndarray, "64 64 3"]:
    """Renders one scene with antialiased edges.

    Args:
        scene: The scene.
        noise_source: Random number generator of the pixel noise.
    """
    ticks = (np.arange(SIZE) + 0.5) / SIZE
    px, py = np.meshgrid(ticks, ticks)
    turn = np.deg2rad(scene.angle)
    dx = (px - scene.center[0]) / scene.size
    dy = (py - scene.center[1]) / scene.size
    # The pixels are turned backward instead of the object forward.
    x = dx * np.cos(turn) + dy * np.sin(turn)
    y = -dx * np.sin(turn) + dy * np.cos(turn)

    # Half a pixel on both sides of the border is covered in part, in proportion to the distance.
    pixel = 1 / (SIZE * scene.size)
    cover = np.clip(0.5 - _DISTANCE[scene.kind.shape](x, y) / pixel, 0, 1)[..., None]
    ink = 0.78 * _ink(scene.kind.pattern, x, y)[..., None]
    # In coordinates that do not turn with the object: the light always comes from the top left.
    light = (1 - scene.shade * (0.5 + 0.35 * (dx + dy)))[..., None]
    paint = np.array(COLORS[scene.kind.color]) * (1 - ink) * np.clip(light, 0, 1)
    background = np.array(BACKGROUNDS[scene.background]) * (1.15 - 0.3 * py[..., None])
    picture = paint * cover + background * (1 - cover)
    if scene.noise:
        picture = picture + scene.noise * pixel_noise(noise_source)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def scene_of(split: Split, index: int) -> tuple[Scene, np.random.Generator]:
    """Returns the scene at `index` of `split`, and the generator of its noise.

    Args:
        split: `pretrain` (seen classes, any index), `test` or `train` (held-out classes, 40 or 100 each, in order).
        index: Position in the split, from 0.

    Raises:
        IndexError: If `index` is negative or past the split's end.
    """
    per_class = _PER_CLASS.get(split)
    if index < 0 or (per_class and index >= len(HELD_OUT_KINDS) * per_class):
        message = f"index {index}: the split {split!r} of shapes starts at 0"
        if per_class:
            message += f" and ends at {len(HELD_OUT_KINDS) * per_class - 1}"
        raise IndexError(message)
    # A random stream for each image: any of them can be rendered without those before it.
    rng = np.random.Generator(np.random.PCG64([_STREAMS[split], index]))
    kind = HELD_OUT_KINDS[index // per_class] if per_class else SEEN_KINDS[index % len(SEEN_KINDS)]
    # Eight numbers at once, of which seven are used. Whatever is added to a scene has to take the eighth, because a
    # ninth would shift the noise of every image.
    u = rng.random(8)
    size = 0.22 + 0.16 * u[0]
    # The object stays inside the image: its center moves only as far as its size allows.
    room = 0.5 - 0.9 * size
    scene = Scene(
        kind=kind,
        size=size,
        center=(0.5 + room * (2 * u[1] - 1), 0.5 + room * (2 * u[2] - 1)),
        angle=60 * u[3] - 30,
        background=tuple(BACKGROUNDS)[int(u[4] * len(BACKGROUNDS))],
        shade=0.5 * u[5],
        noise=0.06 * u[6] ** 2,
    )
    return scene, rng


def image_of(split: Split, index: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Returns the image at `index` of `split`; see `scene_of`."""
    return render(*scene_of(split, index))


def label_of(index: int, split: Split = "test") -> int:
    """Returns the class index of the image at `index` of `test` or `train`: its index in `HELD_OUT_KINDS`."""
    return index // _PER_CLASS[split]


def scanned_digits(*, pretrain: bool) -> tuple[UInt8[np.ndarray, "n 64 64 3"], UInt8[np.ndarray, " n"]]:
    """Loads scikit-learn's 1,797 scans of handwritten digits (real data), enlarged to 64x64.

    Args:
        pretrain: Whether to load the first 898 scans, which the small models are trained on; else the last 899,
            which are evaluated. The ten classes themselves are seen in pre-training.

    Returns:
        Images, and the digit that each shows.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the scans of digits (dataset=digits, and the small models' training) come with scikit-learn: "
            "pip install 'lgclip[digits]'"
        ) from error

    scans: Any = load_digits()
    half = slice(0, 898) if pretrain else slice(898, None)
    # The scans have 17 gray levels, 0 to 16.
    grey = (scans.images[half] / 16 * 255 + 0.5).astype(np.uint8)
    large = [Image.fromarray(g).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB") for g in grey]
    return np.stack([np.asarray(image) for image in large]), scans.target[half].astype(np.uint8)
