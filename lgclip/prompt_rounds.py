"""The rounds of prompt learning: guess labels, learn from them, look at the pool again; each is kept when it ends."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import one_hot

from lgclip.checkpoint import SafetensorsIO, last_checkpoint
from lgclip.diffuser.base import seed_of
from lgclip.encoder.base import Encoder, LearningTowers
from lgclip.encoder.prompted import FILES
from lgclip.guessing import Guesses, accuracy_of, aid_of, guess, images_of_class, watched
from lgclip.methods.prompt_learner import KINDS, PromptRound, Prompts, weights_of
from lgclip.pool import Ground
from lgclip.prompt_batches import Batches, Look, Rows
from lgclip.prompt_files import save_prompt
from lgclip.prompt_spec import PromptSpec
from lgclip.prototypes import Support
from lgclip.shares import own_share
from lgclip.soft_prompts import TextContext, TextPrompt, VisualPrompt, VisualTokens
from lgclip.steps import StepBar


class State(NamedTuple):
    """What a round leaves to the next.

    Attributes:
        learnt: The prompts' vectors, by their names.
        cosines: Of the unlabelled images and the target classes, by these prompts.
        rows: What is told of each round; the first is of zero-shot.
    """

    learnt: dict[str, Tensor]
    cosines: Float[Tensor, "u t"]
    rows: list[dict[str, Any]]


def log_rounds(rows: Iterable[Mapping[str, Any]], logger: Any) -> None:
    """Logs what is told of rounds: the loss of each epoch, and with its last one the round's row.

    Args:
        rows: The rows; that of zero-shot, which learnt nothing, is left out.
        logger: Of Lightning; its steps are epochs, over all rounds.
    """
    for row in rows:
        losses = row.get("losses", ())
        told = {name: float(value) for name, value in row.items() if name != "losses"}
        for epoch, loss in enumerate(losses, 1):
            step = (row["round"] - 1) * len(losses) + epoch
            logger.log_metrics({"loss": loss, **(told if epoch == len(losses) else {})}, step=step)
    logger.save()


def _last_loss(learner: PromptRound) -> dict[str, float]:
    return {"loss": learner.losses[-1]} if learner.losses else {}


class Course:
    """All rounds of a lesson.

    Args:
        spec: The recipe.
        encoder: Through whose towers prompts are learnt.
        ground: What is learnt from.
        folder: Of the checkpoints.
        device: Where the towers run.
        workers: Processes that decode images.

    Attributes:
        temperature: What cosines are divided by.
        aid: What the synthetic images say of the pool; None if they are not asked.
    """

    def __init__(
        self, spec: PromptSpec, encoder: Encoder, ground: Ground, folder: Path, device: torch.device, workers: int
    ) -> None:
        self.spec, self.ground, self._device, self._workers = spec, ground, device, workers
        self._encoder, self._folder, self._rounds = encoder, folder, folder / "rounds.safetensors"
        self._towers: LearningTowers = encoder.learning_towers(device, *spec.kinds)
        self.temperature = spec.temperature or 1 / self._towers.scale
        self.aid = aid_of(spec, ground, self.temperature)
        transform = encoder.transform() if spec.has_visual else None
        self._looks = {"real": Look(ground.pool, transform)}
        if ground.synthetic is not None:
            self._looks["synthetic"] = Look(ground.synthetic, transform)

    def run(
        self, make_trainer: Callable[..., Trainer], trainer: Trainer, hidden: Sequence[int] | None, logger: Any
    ) -> tuple[State, Trainer]:
        """What is left to do of the rounds.

        Args:
            make_trainer: Makes a trainer.
            trainer: One that was made, which is given back where no round is left.
            hidden: True class of each unlabelled image, which goes to `watched` alone.
            logger: Is told what each round was like.

        Returns:
            What the last round leaves, and the last trainer.
        """
        column = {label: at for at, label in enumerate(self.ground.division.targets)}
        truth = None if hidden is None else torch.tensor([column[label] for label in hidden])
        state = self._begun(truth)
        if logger and trainer.is_global_zero:
            log_rounds(state.rows, logger)  # those of a run that was interrupted
        for turn in range(len(state.rows), self.spec.rounds + 1):
            guesses, row = self._guessed(turn, state.cosines)
            module, trainer = self._fit(turn, guesses, state, make_trainer)
            cosines = self._cosines(module.prompts, trainer)
            row |= {"losses": module.losses, **watched(guesses, cosines, truth)}
            state = State(module.prompts.learnt(), cosines, [*state.rows, row])
            if trainer.is_global_zero:
                self._keep(turn, state)
                if logger:
                    log_rounds([row], logger)
            trainer.strategy.barrier()
        return state, trainer

    def save(self, state: State, folder: Path) -> tuple[str, ...]:
        """Writes the prompts of a state.

        Args:
            state: What the last round leaves.
            folder: Where they go.

        Returns:
            The kinds that were written.
        """
        prompts = self._prompts(state.learnt)
        for kind in self.spec.kinds:
            prompt = prompts.text if kind == "text" else prompts.visual
            assert isinstance(prompt, TextPrompt | VisualPrompt)
            save_prompt(prompt, folder / FILES[kind])
        return self.spec.kinds

    def _begun(self, truth: Int[Tensor, " u"] | None) -> State:
        """What earlier rounds left, or zero-shot."""
        if self._rounds.is_file():
            held = SafetensorsIO().load_checkpoint(self._rounds)
            return State(held["learnt"], held["cosines"], held["rows"])
        ground, division = self.ground, self.ground.division
        sentences = self._sentences() if self.spec.as_released else ground.sentences
        cosines = ground.pool.features[division.unlabelled] @ sentences[list(division.targets)].T
        row: dict[str, Any] = {"round": 0}
        return State({}, cosines, [row if truth is None else row | {"accuracy": accuracy_of(cosines, truth)}])

    def _sentences(self) -> Float[Tensor, "c d"]:
        """The classes by the release's sentences, such as `a photo of a {}forest`."""
        names, templates = self.ground.class_names, self.ground.templates
        said = [f"{template.rstrip('.')}{name}" for name in names for template in templates]
        labels = torch.arange(len(names)).repeat_interleave(len(templates))
        features = self._encoder.load(self._device).texts(said).cpu()
        return Support(features, labels, len(names)).means(renormalise=True)

    def _guessed(self, turn: int, cosines: Float[Tensor, "u t"]) -> tuple[Guesses, dict[str, Any]]:
        spec, (unlabelled, classes) = self.spec, cosines.shape
        k = images_of_class(spec, turn, unlabelled, classes)
        # The aid's temperature was chosen for the sentences; a learnt prompt has that which it was learnt at.
        temperature = self.temperature if self.aid is None or turn > 1 else self.aid.fusion.text_temperature
        guesses = guess(spec, cosines, temperature, self.aid, k)
        return guesses, {"round": turn, "k": k, "guessed": len(guesses.places)}

    def _fit(
        self, turn: int, guesses: Guesses, state: State, make_trainer: Callable[..., Trainer]
    ) -> tuple[PromptRound, Trainer]:
        """Learns from one round's images, from the last checkpoint if there is one."""
        spec, folder = self.spec, self._folder / f"{turn:02}"
        prompts = self._prompts(state.learnt if spec.goes_on else {})
        labelled, guessed = len(self.ground.division.labelled), len(guesses.places)
        module = PromptRound(prompts, spec, weights_of(self.ground.paradigm, labelled, guessed, spec))
        batches = self._batches(turn, guesses)
        trainer = make_trainer(
            max_steps=batches.steps,
            max_epochs=-1,
            precision="32-true",  # the towers have the encoder's own
            gradient_clip_val=spec.clip,
            plugins=[SafetensorsIO()],
            callbacks=[
                last_checkpoint(folder, spec.checkpoint_every),
                StepBar(f"round {turn}/{spec.rounds}", _last_loss),
            ],
            logger=False,
        )
        last = folder / "last.safetensors"
        trainer.fit(module, datamodule=batches, ckpt_path=last if last.exists() else None)
        return module, trainer

    def _prompts(self, learnt: dict[str, Tensor]) -> Prompts:
        """New prompts, or those that were learnt."""
        spec, towers, names = self.spec, self._towers, self.ground.class_names
        text, visual = None, None
        if spec.has_text:
            context = TextContext(spec.tokens, spec.position, spec.template, spec.per_class, seed=spec.seed)
            text = TextPrompt(towers, context, names)
        if spec.has_visual:
            visual = VisualPrompt(towers, VisualTokens(spec.tokens, spec.deep, spec.seed))
        prompts = Prompts(text, visual, self.ground.sentences, self.temperature)
        prompts.restore(learnt)
        return prompts

    def _batches(self, turn: int, guesses: Guesses) -> Batches:
        ground, spec, classes = self.ground, self.spec, len(self.ground.class_names)
        division, known = ground.division, one_hot(ground.labels, classes).bool()
        sets = torch.zeros(len(guesses.sets), classes, dtype=torch.bool)
        sets[:, list(division.targets)] = guesses.sets
        kinds = torch.cat([torch.full((len(part),), kind) for kind, part in enumerate((known, sets))])
        places = torch.cat([division.labelled, division.unlabelled[guesses.places]])
        rows = {"real": Rows(places, torch.cat([known, sets]), kinds)}
        if spec.synthetic_weight:
            chosen = ground.chosen(spec.synthetic_images)
            drawn = one_hot(ground.drawn[chosen], classes).bool()
            rows["synthetic"] = Rows(chosen, drawn, torch.full((len(chosen),), KINDS.index("synthetic")))
        sizes = {"real": spec.batch_size, "synthetic": spec.drawn_batch}
        seed = seed_of("round", spec.seed, turn)
        return Batches(rows, self._looks, sizes, epochs=spec.epochs, seed=seed, workers=self._workers)

    @torch.no_grad()
    def _cosines(self, prompts: Prompts, trainer: Trainer) -> Float[Tensor, "u t"]:
        """What the prompts say of the unlabelled images."""
        prompts, division = prompts.to(self._device), self.ground.division
        classes = prompts.class_features()[list(division.targets)]
        if not self.spec.has_visual:
            return self.ground.pool.features[division.unlabelled] @ classes.cpu().T
        size = self._encoder.batch_size
        mine = own_share(trainer, len(division.unlabelled), size)
        found = torch.zeros(len(division.unlabelled), len(classes), device=self._device)
        for start in range(0, len(mine), size):
            share = torch.tensor(mine[start : start + size])
            pixels = self._looks["real"].stacked(division.unlabelled[share].tolist())
            found[share] = prompts.image_features(pixels.to(self._device)) @ classes.T
        return trainer.strategy.reduce(found, reduce_op="sum").cpu()

    def _keep(self, turn: int, state: State) -> None:
        """Writes what a round leaves, and takes its own checkpoints away."""
        self._rounds.parent.mkdir(parents=True, exist_ok=True)
        SafetensorsIO().save_checkpoint(state._asdict(), self._rounds)
        shutil.rmtree(self._folder / f"{turn:02}", ignore_errors=True)
