"""What prompts are learnt from in tests: pictures of plain colours, and a small two-tower model with random weights."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from student_worlds import Patches, drawn, one_cpu, stages_of
from worlds import encoder_folder

from lgclip.encoder.open_clip import OpenClip
from lgclip.features import encode
from lgclip.paradigms import Paradigm
from lgclip.pool import Ground
from lgclip.prompt_learning import PromptLesson, learn_prompts
from lgclip.prompt_spec import PromptSpec
from lgclip.scales import Scales, SquareCrops

EACH = 8


class Relabelled(Patches):
    """The same pictures with other labels.

    Args:
        labels: Class index of each.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        super().__init__(EACH, "train")
        self._shown, self.labels = Patches(EACH, "train"), tuple(labels)

    def image(self, index: int) -> Image.Image:
        return self._shown.image(index)


def encoder_of(root: Path) -> OpenClip:
    """The model, made the first time."""
    folder = root / "encoder"
    return OpenClip(str(folder if folder.exists() else encoder_folder(folder)))


def ground_of(
    root: Path, kind: str = "ul", pool: Patches | None = None, *, images: int = 0, scales: Scales | None = None
) -> Ground:
    """What is learnt from: 24 pictures of three colours, and drawn ones of each if there are to be."""
    encoder, pool, scales = encoder_of(root), pool or Patches(EACH, "train"), scales or SquareCrops()
    drawing = drawn(root / "drawn", images) if images else None
    streams, read = encode(stages_of(), pool, encoder, scales, root / "store", drawing=drawing, workers=0)
    return Ground.of(streams.streams, read, Paradigm(kind), scales)


def small(**values: Any) -> PromptSpec:
    """Prompts that are learnt in a second."""
    chosen: dict[str, Any] = {
        "tokens": 4, "rounds": 2, "epochs": 2, "batch_size": 8, "warmup_epochs": 1, "lr": 0.05, "temperature": 0.05,
    }  # fmt: skip
    return PromptSpec(**chosen | values)


def lesson_of(root: Path, ground: Ground | None = None, **values: Any) -> PromptLesson:
    """A lesson in this world."""
    return PromptLesson(small(**values), encoder_of(root), ground or ground_of(root))


def hidden_of(ground: Ground, pool: Patches | None = None) -> list[int]:
    """True class of each unlabelled image."""
    labels = (pool or Patches(EACH, "train")).labels
    return [labels[at] for at in ground.division.unlabelled.tolist()]


def taught(lesson: PromptLesson, root: Path, trainer: Any = one_cpu, **more: Any) -> Path:
    """The folder of learnt prompts."""
    return learn_prompts(stages_of(trainer), partial(trainer), lesson, root, **more)
