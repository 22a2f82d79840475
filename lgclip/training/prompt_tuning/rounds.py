"""Runs the rounds of prompt tuning: assign pseudo-labels, tune, encode the pool again; saves each finished round."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import one_hot

from lgclip.diffuser.base import seed_of
from lgclip.encoder.base import Encoder, LearningTowers
from lgclip.methods.prototypes import SupportSet
from lgclip.runtime.devices import shard_indices
from lgclip.store.checkpoints import SafetensorsIO, last_checkpoint, resumable
from lgclip.training.loop import StepBar
from lgclip.training.prompt_tuning.config import PromptTuningConfig
from lgclip.training.prompt_tuning.data import Batches, CachedImages, Rows
from lgclip.training.prompt_tuning.encoder import FILES
from lgclip.training.prompt_tuning.files import save_prompt
from lgclip.training.prompt_tuning.module import KINDS, PromptRound, Prompts, weights_of
from lgclip.training.prompt_tuning.pool import PromptTuningData
from lgclip.training.prompt_tuning.pseudo_labelling import (
    PseudoLabels,
    accuracy_of,
    assign_pseudo_labels,
    auxiliary_scores,
    images_of_class,
    pseudo_label_quality,
)
from lgclip.training.prompt_tuning.pseudo_labels import RELEASE_VALIDATES_FROM, training_part
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt, VisualPrompt, VisualTokens


class State(NamedTuple):
    """Holds the state that a round passes on to the next.

    Attributes:
        learned_prompts: The prompts' vectors, by name.
        cosines: Cosines of the unlabelled images and the target classes, by these prompts.
        rows: Metrics of each round; the first is zero-shot.
    """

    learned_prompts: dict[str, Tensor]
    cosines: Float[Tensor, "u t"]
    rows: list[dict[str, Any]]


def log_rounds(rows: Iterable[Mapping[str, Any]], logger: Any) -> None:
    """Logs metrics of rounds: the loss of each epoch, and with its last one the round's row.

    Args:
        rows: The rows; the zero-shot one, without training, is left out.
        logger: Lightning logger; its steps are epochs, over all rounds.
    """
    for row in rows:
        losses = row.get("losses", ())
        round_values = {name: float(value) for name, value in row.items() if name != "losses"}
        for epoch, loss in enumerate(losses, 1):
            # Counted over all rounds: a logger plots a line by its steps and refuses those that go back.
            step = (row["round"] - 1) * len(losses) + epoch
            values = {"loss": loss}
            if epoch == len(losses):
                values |= round_values
            logger.log_metrics(values, step=step)
    logger.save()


def _last_loss(prompt_tuning: PromptRound) -> dict[str, float]:
    if not prompt_tuning.losses:
        return {}
    return {"loss": prompt_tuning.losses[-1]}


class PromptTuningLoop:
    """Runs all rounds of a prompt tuning.

    Args:
        config: The recipe.
        encoder: Encoder whose towers are used.
        data: The training data.
        folder: Folder of the checkpoints.
        device: Device of the towers.
        workers: Number of processes that decode images.

    Attributes:
        temperature: Divisor of the cosines.
        auxiliary: Auxiliary scores of the pool; None if they are not used.
    """

    def __init__(
        self,
        config: PromptTuningConfig,
        encoder: Encoder,
        data: PromptTuningData,
        folder: Path,
        device: torch.device,
        workers: int,
    ) -> None:
        self.data = data
        self._device = device
        self._workers = workers
        self._encoder = encoder
        self._folder = folder
        self._rounds = folder / "rounds.safetensors"
        self._towers: LearningTowers = encoder.learning_towers(device, *config.kinds)
        # The encoder holds the factor that cosines are multiplied by, exp of CLIP's logit scale.
        self.temperature = config.temperature or 1 / self._towers.scale
        self.auxiliary = auxiliary_scores(config, data, self.temperature)
        if self.auxiliary is not None and self.auxiliary.prior:
            assert config.prior_weight is not None
            config = replace(config, synthetic_weight=config.synthetic_weight * config.prior_weight)
        self.config = config
        # A text prompt learns from stored features, so no image is decoded at all.
        transform = encoder.transform() if config.has_visual else None
        self._cached_images = {"real": CachedImages(data.pool, transform)}
        if data.synthetic is not None:
            self._cached_images["synthetic"] = CachedImages(data.synthetic, transform)

    def run(
        self, make_trainer: Callable[..., Trainer], trainer: Trainer, hidden: Sequence[int] | None, logger: Any
    ) -> tuple[State, Trainer]:
        """Runs the remaining rounds.

        Args:
            make_trainer: Builds a trainer.
            trainer: An existing trainer, which is returned if no round is left.
            hidden: True class of each unlabelled image, passed only to `pseudo_label_quality`.
            logger: Logs the metrics of each round.

        Returns:
            The state after the last round, and the last trainer.
        """
        truth = None
        if hidden is not None:
            column = {label: index for index, label in enumerate(self.data.class_split.targets)}
            truth = torch.tensor([column[label] for label in hidden])
        state = self._begun(truth)
        if logger and trainer.is_global_zero:
            log_rounds(state.rows, logger)  # those of a run that was interrupted
        # The rows are zero-shot's and one a round, so their number is the next round's.
        for turn in range(len(state.rows), self.config.rounds + 1):
            pseudo_labels, row = self._pseudo_labels(turn, state.cosines)
            module, trainer = self._fit(turn, pseudo_labels, state, make_trainer)
            # On every device, before the branch for the first one: it is a collective operation.
            cosines = self._cosines(module.prompts, trainer)
            row |= {"losses": module.losses, **pseudo_label_quality(pseudo_labels, cosines, truth)}
            state = State(module.prompts.learned_prompts(), cosines, [*state.rows, row])
            if trainer.is_global_zero:
                self._keep(turn, state)
                if logger:
                    log_rounds([row], logger)
            # No device may begin the next round before this one's state is written: after a failure all of them
            # resume from it.
            trainer.strategy.barrier()
        return state, trainer

    def save(self, state: State, folder: Path) -> tuple[str, ...]:
        """Writes the prompts of a state.

        Args:
            state: The state after the last round.
            folder: Target folder.

        Returns:
            The types of prompts that were written.
        """
        prompts = self._prompts(state.learned_prompts)
        for kind in self.config.kinds:
            prompt = prompts.text if kind == "text" else prompts.visual
            assert isinstance(prompt, TextPrompt | VisualPrompt)
            save_prompt(prompt, folder / FILES[kind])
        return self.config.kinds

    def _begun(self, truth: Int[Tensor, " u"] | None) -> State:
        """Returns the saved state of earlier rounds, or zero-shot."""
        if resumable(self._rounds):
            saved = SafetensorsIO().load_checkpoint(self._rounds)
            return State(saved["learned_prompts"], saved["cosines"], saved["rows"])
        data = self.data
        class_split = data.class_split
        sentences = data.sentences
        if self.config.release_bugs:
            sentences = self._sentences()
        cosines = data.pool.features[class_split.unlabelled] @ sentences[list(class_split.targets)].T
        row: dict[str, Any] = {"round": 0}
        if truth is not None:
            row["accuracy"] = accuracy_of(cosines, truth)
        return State({}, cosines, [row])

    def _sentences(self) -> Float[Tensor, "c d"]:
        """Encodes the classes by the release's sentences, such as `a photo of a {}forest`."""
        names = self.data.class_names
        templates = self.data.templates
        # The release appends the name to the template and leaves its braces where they are.
        sentences: list[str] = []
        for name in names:
            sentences.extend(f"{template.rstrip('.')}{name}" for template in templates)
        labels = torch.arange(len(names)).repeat_interleave(len(templates))
        features = self._encoder.load(self._device).texts(sentences).cpu()
        return SupportSet(features, labels, len(names)).means(renormalize=True)

    def _pseudo_labels(self, turn: int, cosines: Float[Tensor, "u t"]) -> tuple[PseudoLabels, dict[str, Any]]:
        config = self.config
        (unlabelled, classes) = cosines.shape
        k = images_of_class(config, turn, unlabelled, classes)
        temperature = self.temperature
        # The auxiliary temperature was fitted for the sentences; a learned prompt uses its training temperature.
        if self.auxiliary is not None and turn == 1:
            temperature = self.auxiliary.fusion.text_temperature
        auxiliary = self.auxiliary
        if config.auxiliary_rounds is not None and turn > config.auxiliary_rounds:
            auxiliary = None
        pseudo_labels = assign_pseudo_labels(config, cosines, temperature, auxiliary, k)
        if config.release_bugs and k >= RELEASE_VALIDATES_FROM:
            part = training_part(len(pseudo_labels.places))
            pseudo_labels = PseudoLabels(pseudo_labels.places[part], pseudo_labels.sets[part])
        return pseudo_labels, {"round": turn, "k": k, "guessed": len(pseudo_labels.places)}

    def _fit(
        self, turn: int, pseudo_labels: PseudoLabels, state: State, make_trainer: Callable[..., Trainer]
    ) -> tuple[PromptRound, Trainer]:
        """Trains on one round's images, from the last checkpoint if there is one."""
        config = self.config
        folder = self._folder / f"{turn:02}"
        # GRIP starts every round again: a prompt that goes on would keep the errors of earlier pseudo-labels.
        prompts = self._prompts(state.learned_prompts if config.starts_from_previous else {})
        labelled = len(self._labelled())
        pseudo_labelled = len(pseudo_labels.places)
        module = PromptRound(prompts, config, weights_of(self.data.paradigm, labelled, pseudo_labelled, config))
        batches = self._batches(turn, pseudo_labels)
        trainer = make_trainer(
            # Steps and not epochs end a round: a resume begins in the middle of an epoch that Lightning knows nothing
            # of.
            max_steps=batches.steps,
            max_epochs=-1,
            precision="32-true",  # the towers have the encoder's own
            gradient_clip_val=config.gradient_clip,
            plugins=[SafetensorsIO()],
            callbacks=[
                last_checkpoint(folder, config.checkpoint_every),
                StepBar(f"round {turn}/{config.rounds}", _last_loss),
            ],
            logger=False,
        )
        # There only if this round was interrupted: `_keep` removes the folder of each that has ended.
        trainer.fit(module, datamodule=batches, ckpt_path=resumable(folder / "last.safetensors"))
        return module, trainer

    def _prompts(self, learned_prompts: dict[str, Tensor]) -> Prompts:
        """Returns new prompts, or restored ones."""
        config = self.config
        towers = self._towers
        names = self.data.class_names
        text = None
        visual = None
        if config.has_text:
            context = TextContext(config.tokens, config.position, config.template, config.per_class, seed=config.seed)
            text = TextPrompt(towers, context, names)
        if config.has_visual:
            visual = VisualPrompt(towers, VisualTokens(config.tokens, config.deep, config.seed))
        prompts = Prompts(text, visual, self.data.sentences, self.temperature)
        prompts.restore(learned_prompts)
        return prompts

    def _labelled(self) -> Int[Tensor, " l"]:
        """Returns which of the labelled images are trained on: all, or the part that GRIP's release trains on."""
        count = len(self.data.class_split.labelled)
        if self.config.release_bugs:
            return training_part(count)
        return torch.arange(count)

    def _batches(self, turn: int, pseudo_labels: PseudoLabels) -> Batches:
        data = self.data
        config = self.config
        classes = len(data.class_names)
        class_split = data.class_split
        labelled = self._labelled()
        true_classes = one_hot(data.labels[labelled], classes).bool()
        sets = torch.zeros(len(pseudo_labels.sets), classes, dtype=torch.bool)
        # Pseudo-labels are among the target classes, but the loss is over all classes, as in GRIP's release.
        sets[:, list(class_split.targets)] = pseudo_labels.sets
        kinds = torch.cat([torch.full((len(part),), kind) for kind, part in enumerate((true_classes, sets))])
        places = torch.cat([class_split.labelled[labelled], class_split.unlabelled[pseudo_labels.places]])
        rows = {"real": Rows(places, torch.cat([true_classes, sets]), kinds)}
        if config.synthetic_weight:
            chosen = data.synthetic_indices(config.synthetic_images)
            synthetic_labels = one_hot(data.synthetic_labels[chosen], classes).bool()
            rows["synthetic"] = Rows(chosen, synthetic_labels, torch.full((len(chosen),), KINDS.index("synthetic")))
        sizes = {"real": config.batch_size, "synthetic": config.synthetic_batch_size}
        # Another order in each round, which depends on the round alone and so survives a resume.
        seed = seed_of("round", config.seed, turn)
        return Batches(rows, self._cached_images, sizes, epochs=config.epochs, seed=seed, workers=self._workers)

    @torch.no_grad()
    def _cosines(self, prompts: Prompts, trainer: Trainer) -> Float[Tensor, "u t"]:
        """Computes the cosines of the unlabelled images under the prompts."""
        prompts = prompts.to(self._device)
        class_split = self.data.class_split
        classes = prompts.class_features()[list(class_split.targets)]
        if not self.config.has_visual:
            return self.data.pool.features[class_split.unlabelled] @ classes.cpu().T
        # A visual prompt changes every image's feature, so the pool has to be read again; the devices split the work.
        size = self._encoder.batch_size
        local_places = shard_indices(trainer, len(class_split.unlabelled), size)
        cosines = torch.zeros(len(class_split.unlabelled), len(classes), device=self._device)
        for start in range(0, len(local_places), size):
            rows = torch.tensor(local_places[start : start + size])
            pixels = self._cached_images["real"].stacked(class_split.unlabelled[rows].tolist())
            cosines[rows] = prompts.image_features(pixels.to(self._device)) @ classes.T
        # The rows of other devices are zeros here, so the sum is every row once.
        return trainer.strategy.reduce(cosines, reduce_op="sum").cpu()

    def _keep(self, turn: int, state: State) -> None:
        """Saves a round's state, and removes its own checkpoints."""
        self._rounds.parent.mkdir(parents=True, exist_ok=True)
        SafetensorsIO().save_checkpoint(state._asdict(), self._rounds)
        # Only after the state is written: an interruption between the two leaves a checkpoint too many, never one too
        # few.
        shutil.rmtree(self._folder / f"{turn:02}", ignore_errors=True)
