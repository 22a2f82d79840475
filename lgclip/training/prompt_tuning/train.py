"""Tunes prompts in rounds, into a folder of the store.

STORE/prompts_learned/KEY/text.safetensors      the text prompt, and
STORE/prompts_learned/KEY/visual.safetensors    the visual one, if they are tuned
STORE/prompts_learned/KEY/prompt_tuning.json    their inputs and each round's metrics; written last
STORE/prompts_learned/KEY/checkpoints/          during the tuning: `rounds` after each round, and one folder per round
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from lgclip.encoder.weight_files import is_intact, read_config
from lgclip.stages.context import RunContext
from lgclip.store.atomic import write_json
from lgclip.store.keys import digest_of
from lgclip.training.prompt_tuning.encoder import ABOUT, FILES
from lgclip.training.prompt_tuning.rounds import PromptTuningLoop, State
from lgclip.training.prompt_tuning.task import PromptTuningSetup
from lgclip.training.task import FitResult, TrainingTask


@dataclass(frozen=True)
class PromptTraining(TrainingTask):
    """Tunes tuned prompt on pseudo-labels, round after round (arXiv:2306.01669, arXiv:2504.11930).

    Attributes:
        setup: The recipe, the towers and the images.
        hidden: True class of each unlabelled image, in the split's order: only for the analysis after each round;
            the prompts do not depend on it.
    """

    folder_name: ClassVar[str] = "prompts_learned"
    stage: ClassVar[str] = "prompt tuning"
    unit: ClassVar[str] = "round"

    setup: PromptTuningSetup
    hidden: Sequence[int] | None = None

    @property
    def amount(self) -> int:
        return self.setup.config.rounds

    def inputs(self) -> dict[str, object]:
        return self.setup.inputs()

    def is_complete(self, folder: Path) -> bool:
        return (folder / ABOUT).is_file() and is_intact(folder, ABOUT, FILES)

    def fit(self, context: RunContext, folder: Path) -> FitResult:
        setup = self.setup
        # Made for its device alone: no round may be left to run.
        trainer = context.make_trainer(logger=False, enable_checkpointing=False)
        device = trainer.strategy.root_device
        loop = PromptTuningLoop(
            setup.config, setup.encoder, setup.data, folder / "checkpoints", device, context.training_workers
        )
        state, trainer = loop.run(context.make_trainer, trainer, self.hidden, context.logger)
        return FitResult(trainer, (loop, state))

    def save(self, folder: Path, outcome: Any, cost: Mapping[str, object]) -> None:
        loop, state = outcome
        _write(folder, self.setup, loop, state, dict(cost))

    @classmethod
    def summary(cls, folder: Path) -> str:
        about = read_config(folder / ABOUT)
        first = about["rounds"][0]
        last = about["rounds"][-1]
        if not last["round"]:
            return f"{folder}: nothing tuned, zero-shot"
        line = f"{folder}: {' and '.join(about['prompt_types'])} prompt after {last['round']} rounds"
        if "accuracy" in last:
            line += f"; on the pool's unlabelled images {first['accuracy']:.1%} before and {last['accuracy']:.1%} after"
        return line


def _write(
    folder: Path, setup: PromptTuningSetup, loop: PromptTuningLoop, state: State, spent: dict[str, object]
) -> None:
    """Writes the prompts, and their metadata last."""
    config = setup.config
    data = setup.data
    # Without a round there are only the vectors' random starts, which must not be evaluated.
    kinds: tuple[str, ...] = ()
    if config.rounds:
        kinds = loop.save(state, folder)
    num_synthetic = 0
    if config.needs_images:
        num_synthetic = len(data.synthetic_indices(config.synthetic_images))
    auxiliary = None
    if loop.auxiliary is not None:
        scores = loop.auxiliary
        auxiliary = {
            **scores.fusion._asdict(),
            "leave_one_out": scores.correct,
            "text_left_out": scores.text_correct,
            "prior": scores.prior,
        }
    # In SSL every class counts as seen, so the split of the classes matters only in TRZSL.
    seen: list[int] = []
    unseen: list[int] = []
    if data.paradigm == "trzsl":
        seen = list(data.class_split.seen_classes)
        unseen = list(data.class_split.unseen)
    about = {
        "key": folder.name,
        "prompt_types": list(kinds),
        "seed": config.seed,
        "rounds": state.rows,
        "auxiliary": auxiliary,
        "temperature": loop.temperature,
        "paradigm": data.paradigm,
        "class_names": list(data.class_names),
        "seen": seen,
        "unseen": unseen,
        "trained_on": {
            "labelled": len(data.class_split.labelled),
            "unlabelled": len(data.class_split.unlabelled),
            "synthetic": num_synthetic,
        },
        "sha256": {kind: digest_of(folder / FILES[kind]) for kind in kinds},
        **spent,
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "lightning")},
        "inputs": setup.inputs(),
    }
    write_json(folder / ABOUT, about)
