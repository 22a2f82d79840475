"""The stage that learns soft prompts in rounds, into a folder of the store.

STORE/prompts_learned/KEY/text.safetensors      the text prompt, and
STORE/prompts_learned/KEY/visual.safetensors    the visual one, if they are learnt
STORE/prompts_learned/KEY/learner.json          what they were learnt from, and each round; written last
STORE/prompts_learned/KEY/checkpoints/          while it lasts: `rounds` after each round, and a folder a round
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import Trainer

from lgclip.damage import OnBadImage
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.encoder.base import Encoder
from lgclip.encoder.files import read_config
from lgclip.encoder.precision import decided
from lgclip.encoder.prompted import ABOUT, FILES
from lgclip.features import encode
from lgclip.guessing import images_of_class
from lgclip.identity import SCHEMA, digest_of, inputs_of, key_of
from lgclip.ledger import Account
from lgclip.paradigms import Paradigm
from lgclip.pool import Ground
from lgclip.prompt_rounds import Course, State
from lgclip.prompt_spec import PromptSpec
from lgclip.scales import WHOLE, Scales
from lgclip.stages import Stages
from lgclip.training import Fitted, train_once
from lgclip.whole import write_json


@dataclass(frozen=True)
class PromptLesson:
    """How prompts are learnt, through which towers, and from what.

    Args:
        spec: The recipe.
        encoder: Whose towers.
        ground: What is learnt from.

    Raises:
        ValueError: If the recipe does not go with the encoder or with the images.
    """

    spec: PromptSpec
    encoder: Encoder
    ground: Ground

    def __post_init__(self) -> None:
        spec, ground = self.spec, self.ground
        check_towers(spec, self.encoder, ground.scales)
        if spec.needs_images:
            ground.chosen(spec.synthetic_images)
        for turn in range(1, spec.rounds + 1):
            images_of_class(spec, turn, len(ground.division.unlabelled), len(ground.division.targets))

    def inputs(self) -> dict[str, object]:
        """Everything that the prompts depend on."""
        return {
            "learner": inputs_of(self.spec),
            "encoder": self.encoder.inputs(),
            "ground": self.ground.inputs(drawn=self.spec.needs_images),
            "schema": SCHEMA,
        }

    @classmethod
    def of(
        cls,
        stages: Stages,
        spec: PromptSpec,
        encoder: Encoder,
        paradigm: Paradigm,
        pool: Dataset,
        scales: Scales,
        root: Path,
        *,
        drawing: Pictures | None,
        on_bad_image: OnBadImage = OnBadImage.RAISE,
        workers: int = 0,
    ) -> "tuple[PromptLesson, list[int]]":
        """A lesson of a pool, whose images are encoded if they are not yet.

        Args:
            stages: Runs the stage.
            spec: The recipe.
            encoder: Whose towers, on the run's device.
            paradigm: Which labels may be known.
            pool: Images of the data set that are not judged.
            scales: Views of an image.
            root: The store's folder.
            drawing: The synthetic images; None if the recipe needs none.
            on_bad_image: What to do about images of the pool that cannot be read.
            workers: Processes that decode images.

        Returns:
            The lesson, and the true class of each unlabelled image, which `learn_prompts` takes as `hidden`.

        Raises:
            ValueError: If anything of this does not go together.
        """
        check_towers(spec, encoder, scales)
        streams, readable = encode(
            stages, pool, encoder, scales, root, on_bad_image,
            drawing=drawing, workers=workers, title="features of the pool",
        )  # fmt: skip
        ground = Ground.of(streams.streams, readable, paradigm, scales)
        unlabelled: list[int] = ground.division.unlabelled.tolist()
        return cls(spec, encoder, ground), [readable.labels[at] for at in unlabelled]


def check_towers(spec: PromptSpec, encoder: Encoder, scales: Scales) -> None:
    """Whether prompts can be learnt through an encoder; to be asked before hours of drawing.

    Args:
        spec: The recipe.
        encoder: Whose towers.
        scales: Views of an image.

    Raises:
        ValueError: If not.
    """
    encoder.prompt_key(*spec.kinds)
    if decided(encoder.precision) == "fp16":
        raise ValueError("encoder.precision=fp16: gradients are too small for it; choose bf16 or fp32")
    if spec.has_visual and scales.views != (WHOLE,):
        raise ValueError(
            f"learner.prompt={spec.prompt}: a visual prompt is learnt on whole images, and scales has the views "
            f"{', '.join(scales.views)}; choose scales=single"
        )


def folder_of(lesson: PromptLesson, root: Path) -> Path:
    """Where the prompts of a lesson lie, or will lie.

    Args:
        lesson: How they are learnt, and from what.
        root: The store's folder.
    """
    return root / "prompts_learned" / key_of(lesson.inputs())


def is_learned(folder: Path) -> bool:
    """Whether a folder's learning has ended."""
    return (folder / ABOUT).is_file()


def learn_prompts(
    stages: Stages,
    make_trainer: Callable[..., Trainer],
    lesson: PromptLesson,
    root: Path,
    *,
    hidden: Sequence[int] | None = None,
    logger: Any = False,
    workers: int = 0,
) -> Path:
    """Learns prompts, unless they are there; what was interrupted goes on.

    Args:
        stages: Keeps account of it.
        make_trainer: Makes a Lightning trainer of the run's devices from the arguments it is given besides.
        lesson: How they are learnt, and from what.
        root: The store's folder.
        hidden: True class of each unlabelled image, in the division's order: for the analysis of each round alone,
            after it; the prompts are the same without.
        logger: Of Lightning, which is told each epoch's loss and each round's row; False for none.
        workers: Processes that decode images.

    Returns:
        The folder, which `encoder.prompted.Learnt` reads.

    Raises:
        ValueError: If an image cannot be read, or a class name is too long for the text tower.
    """
    folder = folder_of(lesson, root)

    def train() -> Fitted:
        trainer = make_trainer(logger=False, enable_checkpointing=False)  # its device; no round may be left to run
        course = Course(
            lesson.spec, lesson.encoder, lesson.ground, folder / "checkpoints", trainer.strategy.root_device, workers
        )
        state, trainer = course.run(make_trainer, trainer, hidden, logger)
        return trainer, lambda spent: _write(folder, lesson, course, state, spent)

    spared = Account("prompt learning", 0, lesson.spec.rounds, 0.0, "round")
    return train_once(folder, stages, spared, train, there=is_learned(folder))


def _write(folder: Path, lesson: PromptLesson, course: Course, state: State, spent: dict[str, object]) -> None:
    """Writes the prompts, and what is told of them last."""
    spec, ground = lesson.spec, lesson.ground
    kinds = course.save(state, folder) if spec.rounds else ()
    drawn = len(ground.chosen(spec.synthetic_images)) if spec.needs_images else 0
    about = {
        "key": folder.name,
        "kinds": list(kinds),
        "seed": spec.seed,
        "rounds": state.rows,
        "aid": None if course.aid is None else {**course.aid.fusion._asdict(), "leave_one_out": course.aid.right},
        "temperature": course.temperature,
        "paradigm": ground.paradigm,
        "class_names": list(ground.class_names),
        "seen": list(ground.division.seen) if ground.paradigm == "trzsl" else [],
        "unseen": list(ground.division.unseen) if ground.paradigm == "trzsl" else [],
        "learnt_from": {
            "labelled": len(ground.division.labelled),
            "unlabelled": len(ground.division.unlabelled),
            "synthetic": drawn,
        },
        "sha256": {kind: digest_of(folder / FILES[kind]) for kind in kinds},
        **spent,
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "lightning")},
        "inputs": lesson.inputs(),
    }
    write_json(folder / ABOUT, about)


def told(folder: Path) -> str:
    """One line on learnt prompts: their folder, and what the last round says.

    Args:
        folder: Where they lie.
    """
    about = read_config(folder / ABOUT)
    last, first = about["rounds"][-1], about["rounds"][0]
    if not last["round"]:
        return f"{folder}: nothing learnt, zero-shot"
    line = f"{folder}: {' and '.join(about['kinds'])} prompt after {last['round']} rounds"
    if "accuracy" in last:
        line += f"; on the pool's unlabelled images {first['accuracy']:.1%} before and {last['accuracy']:.1%} after"
    return line
