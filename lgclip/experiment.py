"""Builds a run from its config; the entry scripts call only `generate`, `fit`, `evaluate` and `report`.

Only what checks the config is imported at the top. Torch, Lightning and the models are imported where work starts,
so that a wrong number, path or data set is an error within a second.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lgclip.datasets.splits import DatasetSplits
from lgclip.datasets.unreadable import OnBadImage
from lgclip.encoder.packaged_weights import PACKAGE
from lgclip.runtime.instantiate import build, target_of
from lgclip.runtime.secrets import refuse_secrets
from lgclip.runtime.sweep_job import choices, output_folder, sweep_job, uses_ray
from lgclip.runtime.terminal import say_loading, single_line
from lgclip.runtime.unused_settings import (
    IMAGE_SETTINGS,
    PAIR_SETTINGS,
    PROMPT_SETTINGS,
    TEXT_SETTINGS,
    TRAINING_SETTINGS,
    unused_overrides,
)
from lgclip.stages.counts import AUTO, ImageCounts
from lgclip.stages.ray_cluster import check_config
from lgclip.store.image_formats import check_image_format, check_stored
from lgclip.store.root import check_writable, open_root, root_of

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.datasets.base import Dataset
    from lgclip.diffuser.base import SyntheticImages
    from lgclip.evaluation.evaluator import Evaluation, Shift
    from lgclip.evaluation.pools import PoolComparison
    from lgclip.methods.base import Classifier
    from lgclip.reporting.result_schema import RunResult
    from lgclip.stages.context import RunContext
    from lgclip.stages.direct_encoding import DirectEncoding
    from lgclip.stages.parts import GenerationParts, RunParts
    from lgclip.stages.plan import Plan
    from lgclip.stages.references import References
    from lgclip.stages.text import RunTexts
    from lgclip.training.predictor import TrainedPredictor
    from lgclip.training.task import TrainingConfig, TrainingInputs

log = logging.getLogger(__name__)

_PATHS = (
    "llm.path", "llm.file", "diffuser.root", "encoder.checkpoint", "encoder2.checkpoint", "checkpoint", "text.file",
)  # fmt: skip
"""Config values that name a file or folder which has to exist."""


@dataclass(frozen=True)
class _Setup:
    """Holds the parts of an evaluation, all of them built before any heavy work starts."""

    parts: RunParts
    shifts: Mapping[str, Shift]
    method: Classifier
    pool: Dataset | None
    pools: PoolComparison | None
    inputs: TrainingInputs
    context: RunContext


class Experiment:
    """Runs one entry script.

    Parts are built on first use, so that training a small model from scratch loads no data set.

    Args:
        cfg: The composed config of `conf/evaluate.yaml`, `conf/generate.yaml` or `conf/train.yaml`.
        data: The data set, where it is not the one that the config describes; such as class names in memory.

    Raises:
        ValueError: If a count is not an integer or is out of range, a policy is unknown, or a value is a key.
    """

    def __init__(self, cfg: DictConfig, data: DatasetSplits | None = None) -> None:
        refuse_secrets(cfg)  # here too, because a config can remove the callback that looks for keys before the run
        ImageCounts.from_values(cfg)  # wrong numbers are an error before any model loads
        OnBadImage.of(cfg.on_bad_image)
        check_image_format(cfg.paths.get("images"))
        if uses_ray(cfg):
            check_config(cfg)
        for key in _PATHS:
            path = OmegaConf.select(cfg, key, throw_on_missing=False)
            # Weights of a package have no path; the encoder checks them.
            if path is None or str(path).startswith(PACKAGE):
                continue
            if not Path(str(path)).expanduser().exists():
                raise ValueError(f"{key}={path}: no such file or folder")
        self._cfg = cfg
        self._open_data = data

    @cached_property
    def _data(self) -> DatasetSplits:
        """Opens the data set, before torch is imported: a wrong folder is an error within a second."""
        if self._open_data is not None:
            return self._open_data
        return DatasetSplits(partial(build, self._cfg.dataset, _convert_="all"))

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Experiment:
        """Returns the experiment that a composed config describes."""
        return cls(cfg)

    # ------------------------------------------------------------------------------------------------- the verbs

    def generate(self) -> SyntheticImages | None:
        """Generates prompts and images, and lists the images in `images.jsonl` of the run's folder.

        Returns:
            The synthetic images; None with `plan=true`, which only prints.

        Raises:
            ValueError: If a part cannot be built, or a class has no image at all.
        """
        check_stored(self._cfg.paths.images, "generate.py only generates")
        if self._cfg.plan:
            self._print_plan(evaluates=False)
            return None
        data = self._data

        from lgclip.stages.generate import write_list
        from lgclip.stages.parts import GenerationParts

        context = self._context()
        parts = GenerationParts.from_config(self._cfg, data)
        _check_before(context, parts)
        with context.stages:
            synthetic_images = _generate(context, parts)
        if context.trainer.is_global_zero:
            class_names = parts.data.evaluated.class_names
            listed = output_folder() / "images.jsonl"
            write_list(listed, synthetic_images, class_names)
            missing = f", {len(synthetic_images.missing)} could not be generated" if synthetic_images.missing else ""
            print(f"{len(synthetic_images.ids)} images of {len(class_names)} classes{missing}, listed in {listed}")
        return synthetic_images

    def plan(self, *, evaluates: bool = True) -> Plan:
        """Counts what a run would compute, and names the models that it needs; computes and downloads nothing.

        Args:
            evaluates: Whether features are counted too, as for evaluate.py, or prompts and images only.

        Raises:
            ValueError: If a part cannot be built, as a run itself would report.
        """
        data = self._data

        from lgclip.methods.zero_shot import ZeroShot
        from lgclip.stages.direct_encoding import direct_encoding
        from lgclip.stages.parts import GenerationParts, RunParts
        from lgclip.stages.plan import plan_generation, plan_run

        store = open_root(self._cfg.paths.store)
        if not evaluates:
            return plan_generation(GenerationParts.from_config(self._cfg, data), store)
        parts = self._with_views(RunParts.from_config(self._cfg, data))
        method = self._method(parts)
        compares = isinstance(method, ZeroShot) and method.compares_text
        encoding = direct_encoding(self._cfg.paths.images, parts.encoder, parts.scales)
        return plan_run(parts, store, needs_images=bool(method.needs_images), compares_text=compares, encoding=encoding)

    def fit(self) -> Path:
        """Trains what the method needs, unless it is in the store: a student, prompts, LoRA weights or a small model.

        Returns:
            The folder of the result.

        Raises:
            ValueError: If the method trains nothing, or a required input is missing.
        """
        if self._cfg.plan:
            raise ValueError("plan=true: a training has no plan; use it with evaluate.py or generate.py")

        from lgclip.tiny.recipe import Recipe

        if issubclass(target_of(self._cfg.method), Recipe):
            return self._fit_small_model()

        from lgclip.stages.parts import RunParts
        from lgclip.training.loop import run_training

        check_stored(self._cfg.paths.images, f"method={self._cfg.name} trains on them")
        context = self._context()
        recipe = self._training_config()
        parts = RunParts.from_config(self._cfg, self._data)
        logger = build(self._cfg.logger, save_dir=output_folder()) if "_target_" in self._cfg.logger else False
        context = replace(context, logger=logger)
        _check_before(context, parts)
        inputs = _training_inputs(parts, context)
        recipe.check(inputs)
        with context.stages:
            task = recipe.prepare(inputs, context)
            folder = run_training(task, context)
        context.trainer.print(task.summary(folder))
        return folder

    def evaluate(self, logger: Any = False) -> Evaluation:
        """Evaluates the method on the data set and on its shifted variants; computes whatever is missing first.

        Args:
            logger: Lightning logger for trainings; False for none.

        Raises:
            ValueError: If the parts are incompatible, or images are unreadable and the policy does not allow it.
        """
        setup = self._setup
        context = replace(setup.context, logger=logger)
        with context.stages:
            return self._evaluate(setup, context)

    def _evaluate(self, setup: _Setup, context: RunContext) -> Evaluation:
        from lgclip.evaluation.evaluator import Evaluation, Evaluator

        parts, method = setup.parts, setup.method
        synthetic_images = self._generate(context, parts) if method.needs_images else None
        texts = self._texts(setup, context)
        predictor = self._predictor(setup, context, synthetic_images)
        evaluator = Evaluator(context, method, parts.encoder, parts.scales, predictor, setup.pool, texts)
        data, dataset = evaluator.evaluate(parts.data.evaluated, synthetic_images)
        entries: dict[str, Any] = {"pools": evaluator.compare_pools(data, setup.pools)}
        entries |= {"ood": evaluator.evaluate_shifts(dataset, synthetic_images, setup.shifts)}
        entries |= evaluator.report_training(dataset, parts.llm.form_name)
        if self._cfg.membership:
            count = parts.counts.prompts_per_class
            entries["membership"] = evaluator.infer_membership(parts.data.training, count)
        return Evaluation(data, dataset, method, synthetic_images, entries, texts)

    def report(self) -> RunResult | None:
        """Evaluates, then writes, logs and prints the result; copies that of the same run before if nothing changed.

        Returns:
            Content of result.json; None on every device but the first, and with `plan=true`, which only prints.

        Raises:
            ValueError: As in `evaluate`.
        """
        cfg = self._cfg
        if cfg.plan:
            self._print_plan(evaluates=True)
            return None
        folder = output_folder()

        from lgclip.reporting.finished_runs import FinishedRuns, repeat_run

        finished = FinishedRuns(cfg, self._data, root_of(cfg.paths.store), folder)
        if earlier := finished.earlier():
            return repeat_run(earlier, folder, sweep_job())
        setup = self._setup  # whatever is wrong with the config is an error before a logger opens

        from lgclip.reporting.publish import publish
        from lgclip.reporting.wandb.tracking import track

        plain = OmegaConf.to_container(cfg, resolve=True)
        with track(cfg.get("logger"), folder, plain, choices(), sweep_job()) as tracker:
            evaluation = self.evaluate(tracker.logger)
            if not setup.context.trainer.is_global_zero:
                return None
            result = publish(folder, cfg, evaluation, setup.parts, setup.context.stages, tracker)
        if cfg.get("save_classifier"):
            from lgclip.reporting.run_classifier import classifier_of

            saved = classifier_of(folder).save(folder / "classifier")
            print(f"classifier  lgclip classify {saved} PHOTOS")
        finished.remember(result)
        return result

    def build_classifier(self) -> ImageClassifier:
        """Builds a classifier from class names; generates whatever is missing, and evaluates nothing.

        Its predictions are those of `evaluate` with the same config and classes.

        Raises:
            ValueError: If the parts are incompatible, the method trains a model, or a class has no image at all.
        """
        cfg = self._cfg
        open_root(cfg.paths.store)
        data = self._data

        from lgclip.classifier.build import classifier_from_features, needs_text
        from lgclip.classifier.settings import origin_of, settings_of
        from lgclip.methods.zero_shot import ZeroShot
        from lgclip.stages.extract import encode_references
        from lgclip.stages.parts import RunParts
        from lgclip.stages.pool import pool_features
        from lgclip.stages.text import complete_texts

        parts = RunParts.from_config(cfg, data)
        method = self._method(parts)
        if not isinstance(method, ZeroShot) or method.trained is not None:
            raise ValueError(
                f"method={cfg.method.name} trains a model; a classifier is built from prototypes: use method=lgclip, "
                "fusion or clip_text"
            )
        if method.transduction is not None:
            raise ValueError(
                f"transduction={method.transduction.key_name} classifies the images of a test together, a classifier "
                "sees one at a time: set transduction=none"
            )
        configured = next(iter(method.configured.values()))
        if needs_text(configured):
            parts.text.check(parts.data.evaluated, parts.llm)
        context = self._context()
        parts = replace(parts, encoder=parts.encoder.on(context.device))
        parts.encoder.inputs()  # an encoder that cannot be had is an error before anything is generated
        if method.needs_images:
            _check_before(context, parts)
        context.stages.check_before(parts.encoder.check_weights)
        dataset = parts.data.evaluated
        # The view of the full image, where the selection needs it, is one of the synthetic images alone.
        views = self._with_views(parts).scales
        generation = replace(parts, scales=views)
        align = method.align
        with context.stages:
            synthetic_images = self._generate(context, generation) if method.needs_images else None
            unlabeled = pool_features(context, align, data, parts.encoder, parts.scales)
            texts: RunTexts | None = None
            if needs_text(configured):
                texts = complete_texts(context, parts, has_prompts=False, compares=False)
            streams = encode_references(
                context, dataset, parts.encoder, views, synthetic_images=synthetic_images, texts=texts
            )
        classifier = classifier_from_features(
            dataset,
            parts.encoder,
            views,
            configured,
            method.calibration,
            streams=streams,
            synthetic_images=synthetic_images,
            settings=settings_of(cfg, parts.encoder, parts.text.for_added_classes(dataset)),
            origin=origin_of(cfg, synthetic_images),
            align=None if align is None else partial(align.fit, unlabeled),
        )
        classifier.scales = parts.scales
        return classifier

    def references(self) -> References:
        """Returns what `build_classifier` uses of the store; computes nothing.

        Raises:
            ValueError: If the parts cannot be built, or a class has no image in the store.
        """
        from lgclip.classifier.build import needs_text
        from lgclip.methods.zero_shot import ZeroShot
        from lgclip.stages.parts import RunParts
        from lgclip.stages.references import stored_references

        store = open_root(self._cfg.paths.store)
        parts = self._with_views(RunParts.from_config(self._cfg, self._data))
        method = self._method(parts)
        if not isinstance(method, ZeroShot) or method.trained is not None:
            raise ValueError(
                f"method={self._cfg.method.name}: this classifier was trained and not built from prototypes; name the "
                "folder of its run instead"
            )
        configured = next(iter(method.configured.values()))
        return stored_references(
            parts, store, needs_images=bool(method.needs_images), needs_text=needs_text(configured)
        )

    def similar_names(self, count: int) -> list[str]:
        """Names things that look similar to the classes and are none of them, for images that a classifier rejects.

        The chat model of `llm` is asked; without one, words of the class names are recombined.

        Args:
            count: Number of names per class.

        Returns:
            Distinct names; fewer than asked, or none, where the model names no more or the names have one word.
        """
        open_root(self._cfg.paths.store)
        data = self._data

        from lgclip.stages.parts import GenerationParts
        from lgclip.stages.similar_names import similar_names

        return similar_names(self._context, GenerationParts.from_config(self._cfg, data), count)

    # ------------------------------------------------------------------------------------------ how they are built

    def _context(self, *callbacks: Any) -> RunContext:
        """Returns the run context, with a trainer on the run's devices."""
        from lgclip.stages.context import RunContext, image_format
        from lgclip.stages.runner import StageBar, Stages, quiet

        quiet()
        cfg = self._cfg
        store = open_root(cfg.paths.store)
        bars = [StageBar(), *callbacks]
        # With Ray the run has one process, whatever GPUs this machine has: its workers have the others.
        devices = {"devices": 1} if uses_ray(cfg) else {}
        make_trainer = partial(build, cfg.trainer, **devices)
        trainer = make_trainer(logger=False, enable_checkpointing=False, callbacks=bars)
        executor = build(cfg.get("executor"))
        checks = [partial(check_writable, store)]
        if executor is not None:
            checks.append(partial(executor.prepare, store))
        return RunContext(
            store=store,
            stages=Stages(trainer, checks, executor, store),
            make_trainer=make_trainer,
            on_bad_image=OnBadImage.of(cfg.on_bad_image),
            workers=None if cfg.workers == AUTO else cfg.workers,
            image_format=image_format(cfg.paths.images, store),
        )

    def _generate(self, context: RunContext, parts: RunParts) -> SyntheticImages:
        """Generates the images of an evaluation, which are encoded at once where `paths.images` stores none."""
        from lgclip.stages.direct_encoding import direct_encoding

        return _generate(context, parts, direct_encoding(context.image_format, parts.encoder, parts.scales))

    @cached_property
    def _setup(self) -> _Setup:
        cfg = self._cfg
        open_root(cfg.paths.store)
        data = self._data
        if not data.evaluated.has_images:
            raise ValueError(
                f"dataset={data.evaluated.name} has class names and no images to evaluate: generate.py generates "
                "images of them, lgclip build makes a classifier; for an accuracy use dataset=folder dataset.root=DIR"
            )

        if "torch" not in sys.modules:
            say_loading("torch, Lightning and what the models need")

        from lgclip.evaluation.evaluator import shifts_of
        from lgclip.runtime.devices import ConfigConsistencyCheck
        from lgclip.runtime.run_key import run_key
        from lgclip.stages.parts import RunParts
        from lgclip.stages.pool import unlabeled_pool
        from lgclip.training.task import TrainingConfig

        parts = self._with_views(RunParts.from_config(cfg, data))
        shifted = {name: build(node, _convert_="all") for name, node in cfg.ood.items()}
        shifts = shifts_of(parts.data.evaluated, shifted)
        method = self._method(parts)
        pool = unlabeled_pool(method.align, parts.data)
        self._check_method(method)
        self._warn_of_unused(parts, method)
        context = self._context(ConfigConsistencyCheck(run_key(cfg)))
        inputs = _training_inputs(parts, context)
        if isinstance(method.trained, TrainingConfig):
            if cfg.checkpoint is None:
                method.trained.check(inputs)
            else:
                # Loaded once already here: a wrong folder is an error before hours of generation.
                method.trained.load(cfg.checkpoint, inputs, context)
        if parts.encoder.has_text:
            parts.text.check(parts.data.evaluated, parts.llm)
        parts = replace(parts, encoder=parts.encoder.on(context.device))
        parts.encoder.inputs()  # and so is an encoder that cannot be had
        if method.needs_images:
            _check_before(context, parts)
        context.stages.check_before(parts.encoder.check_weights)
        pools = build(cfg.pools, _convert_="all") if cfg.pools else None
        return _Setup(parts, shifts, method, pool, pools, replace(inputs, encoder=parts.encoder), context)

    def _with_views(self, parts: RunParts) -> RunParts:
        """Adds the view of the full image where the selection compares it with the class's sentence."""
        from lgclip.encoder.scales import FULL_IMAGE, WithFullImage

        selection = build(self._cfg.selection)
        compares = selection.needs_text and selection.keep is not None and self._cfg.method.get("text_weight") != 1
        if not compares or FULL_IMAGE in parts.scales.views:
            return parts
        return replace(parts, scales=WithFullImage(others=parts.scales))

    def _print_plan(self, *, evaluates: bool) -> None:
        plan = self.plan(evaluates=evaluates)

        from lgclip.reporting.plan_text import plan_text

        print(plan_text(plan))

    def _method(self, parts: RunParts) -> Classifier:
        from lgclip.methods.from_config import method_from_config

        return method_from_config(self._cfg, parts.encoder, parts.scales)

    def _check_method(self, method: Classifier) -> None:
        """Rejects `checkpoint`, `membership` and `transduction` where they do not fit."""
        from lgclip.training.task import TrainingConfig

        cfg = self._cfg
        recipe = method.trained
        if recipe is not None:
            check_stored(cfg.paths.images, f"method={cfg.method.name} trains on them")
        if cfg.membership and not (isinstance(recipe, TrainingConfig) and recipe.knows_members):
            raise ValueError("membership=True is asked of a student: use method=student")
        if cfg.membership and cfg.transduction:
            raise ValueError("membership=True compares probabilities of each image by itself: set transduction=none")
        if cfg.checkpoint is not None and recipe is None:
            raise ValueError(
                f"checkpoint={cfg.checkpoint} is asked of a student or a prompt: use method=student or "
                f"method=prompt_tuning"
            )

    def _warn_of_unused(self, parts: RunParts, method: Classifier) -> None:
        """Warns of settings on the command line that cannot change the result: they would look like an ablation."""
        unused: set[str] = set()
        used = {"student": {"student"}, "prompt_tuning": {"prompt_tuning", "paradigm"}}.get(
            self._cfg.method.name, set()
        )
        unused.update(set(TRAINING_SETTINGS) - used)
        if not parts.encoder.parts():
            unused.update(PAIR_SETTINGS)
        needs_images = bool(method.needs_images)
        if not parts.encoder.has_text:
            unused.add("text")
        reads_prompts = parts.encoder.has_text and parts.text.generator(parts.llm) is not None
        if not needs_images:
            unused.update(set(IMAGE_SETTINGS) - set(TEXT_SETTINGS if reads_prompts else ()))
        elif not parts.diffuser.needs_prompts:
            unused.update(set(PROMPT_SETTINGS) - set(TEXT_SETTINGS if reads_prompts else ()))
        without_effect = unused_overrides(HydraConfig.get().overrides.task, unused)
        if without_effect:
            why = "" if needs_images else ", which uses no synthetic images"
            log.warning(
                "no effect on method=%s%s: %s", self._cfg.method.name, why, single_line(" ".join(without_effect))
            )

    def _texts(self, setup: _Setup, context: RunContext) -> RunTexts | None:
        """Returns the text sides, and adds their baselines to the method; None without a text tower."""
        from lgclip.methods.zero_shot import ZeroShot
        from lgclip.stages.text import complete_texts

        parts, method = setup.parts, setup.method
        if not parts.encoder.has_text:
            return None
        compares = isinstance(method, ZeroShot) and method.compares_text
        texts = complete_texts(context, parts, has_prompts=_has_prompts(parts, method), compares=compares)
        if isinstance(method, ZeroShot):
            method.add_text_baselines(list(texts.alternatives))
        return texts

    def _predictor(
        self, setup: _Setup, context: RunContext, synthetic_images: SyntheticImages | None
    ) -> TrainedPredictor | None:
        """Returns the predictor that the method trains, trained now if not in the store; None if it trains nothing."""
        from lgclip.training.loop import run_training
        from lgclip.training.task import TrainingConfig

        recipe = setup.method.trained
        if not isinstance(recipe, TrainingConfig):
            return None
        inputs = replace(setup.inputs, synthetic_images=lambda: _required(synthetic_images))
        folder = self._cfg.checkpoint
        if folder is None:
            folder = str(run_training(recipe.prepare(inputs, context), context))
        return recipe.load(folder, inputs, context)

    def _training_config(self) -> TrainingConfig:
        """Returns the recipe that `train.py` runs.

        Raises:
            ValueError: If the method trains nothing, or no recipe is selected.
        """
        from lgclip.training.task import TrainingConfig

        cfg = self._cfg
        if issubclass(target_of(cfg.method), TrainingConfig):
            return build(cfg.method, _convert_="all")
        if "trained" not in cfg.method:
            raise ValueError(
                f"method={cfg.name} trains nothing: choose student, prompt_tuning, diffuser_lora or a recipe such as "
                "tiny_encoder"
            )
        if not cfg.method.trained:  # the config of student=none is empty
            raise ValueError(f"method={cfg.name} needs a recipe: student=tiny, small_set, release, probe or finetune")
        return build(cfg.method.trained, _convert_="all")

    def _fit_small_model(self) -> Path:
        """Trains one of the small models that come with the package."""
        import torch

        from lgclip.stages.runner import quiet
        from lgclip.tiny.recipe import fit as fit_recipe

        quiet()
        cfg = self._cfg
        torch.manual_seed(cfg.seed)  # the first weights
        recipe = build(cfg.method, corpus=build(cfg.corpus))
        folder = Path(cfg.paths.build) / cfg.name
        logger = build(cfg.logger, save_dir=folder) if "_target_" in cfg.logger else False
        fit_recipe(recipe, partial(build, cfg.trainer), logger, folder, every=cfg.checkpoint_every, ema=cfg.ema)
        return folder / "model"


def _check_before(context: RunContext, parts: GenerationParts) -> None:
    """Has the models of a generation checked before its first stage, where there is something to compute."""
    if parts.diffuser.needs_prompts:
        context.stages.check_before(parts.llm.check_weights)
    context.stages.check_before(parts.diffuser.check_weights)


def _generate(context: RunContext, parts: GenerationParts, encoding: DirectEncoding | None = None) -> SyntheticImages:
    from lgclip.stages.generate import generate_images

    return generate_images(context, parts.data, parts.llm, parts.diffuser, parts.counts, encoding)


def _has_prompts(parts: GenerationParts, method: Classifier) -> bool:
    """Returns whether a run generates prompts for images."""
    return bool(method.needs_images) and parts.diffuser.needs_prompts


def _training_inputs(parts: RunParts, context: RunContext) -> TrainingInputs:
    from lgclip.stages.text import complete_texts
    from lgclip.training.task import TrainingInputs

    return TrainingInputs(
        data=parts.data,
        encoder=parts.encoder,
        scales=parts.scales,
        diffuser=parts.diffuser,
        synthetic_images=partial(_generate, context, parts),
        images_per_class=parts.counts.prompts_per_class,
        texts=partial(complete_texts, context, parts, has_prompts=False, compares=False),
    )


def _required(synthetic_images: SyntheticImages | None) -> SyntheticImages:
    assert synthetic_images is not None, "a method that trains needs images"
    return synthetic_images
