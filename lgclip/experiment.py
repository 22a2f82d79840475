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

from omegaconf import DictConfig, OmegaConf

from lgclip.datasets.splits import DatasetSplits
from lgclip.datasets.unreadable import OnBadImage
from lgclip.encoder.packaged_weights import PACKAGE
from lgclip.runtime.instantiate import build, target_of
from lgclip.runtime.known_settings import check_known_settings
from lgclip.runtime.secrets import refuse_secrets
from lgclip.runtime.sweep_job import choices, output_folder, sweep_job, uses_ray
from lgclip.runtime.terminal import print_loading
from lgclip.runtime.value_types import check_settings
from lgclip.stages.counts import ImageCounts
from lgclip.stages.ray_cluster import check_config
from lgclip.store.image_formats import check_image_format, check_stored
from lgclip.store.root import open_root, root_of

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.datasets.base import Dataset
    from lgclip.diffuser.base import SyntheticImages
    from lgclip.evaluation.evaluator import Evaluation, Shift
    from lgclip.evaluation.pools import PoolComparison
    from lgclip.methods.base import Classifier
    from lgclip.reporting.result_schema import RunResult
    from lgclip.stages.context import RunContext
    from lgclip.stages.parts import RunParts
    from lgclip.stages.plan import Plan
    from lgclip.stages.references import References
    from lgclip.stages.text import RunTexts
    from lgclip.training.predictor import TrainedPredictor
    from lgclip.training.task import TrainingInputs

log = logging.getLogger(__name__)

_PATHS = (
    "llm.path", "llm.file", "diffuser.root", "encoder.checkpoint", "encoder2.checkpoint", "checkpoint", "text.file",
)  # fmt: skip
"""Config values that name a file or folder which has to exist."""

_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("plan", "rerun", "membership", "save_classifier"), bool),  # any word, also `no`, would be true
    **dict.fromkeys(("objective", "encoder_weights"), str),
    "tile": int | None,
    "checkpoint": str | None,
    "paths": Mapping[str, Any],
    "paths.store": str | None,
    "paths.images": str | None,
}
"""Settings that belong to no part."""


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
        ValueError: If a value has a wrong type or is out of range, a policy or a setting is unknown, or a value is a
            key.
    """

    def __init__(self, cfg: DictConfig, data: DatasetSplits | None = None) -> None:
        refuse_secrets(cfg)  # here too, because a config can remove the callback that looks for keys before the run
        ImageCounts.from_values(cfg)  # wrong numbers are an error before any model loads
        check_settings(cfg, _TYPES)
        check_known_settings(cfg)
        if cfg.get("tile") is not None and cfg.tile < 1:
            raise ValueError(f"tile={cfg.tile}: it must be at least 1, or null")
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

        from lgclip.stages.context import RunContext
        from lgclip.stages.generate import generate_images, write_list
        from lgclip.stages.parts import GenerationParts

        context = RunContext.from_config(self._cfg)
        parts = GenerationParts.from_config(self._cfg, data)
        context.check_models_of(parts)
        with context.stages:
            synthetic_images = generate_images(context, parts)
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

        from lgclip.methods.from_config import method_from_config
        from lgclip.methods.zero_shot import ZeroShot
        from lgclip.stages.direct_encoding import direct_encoding
        from lgclip.stages.parts import GenerationParts, RunParts
        from lgclip.stages.plan import plan_generation, plan_run

        store = open_root(self._cfg.paths.store)
        if not evaluates:
            return plan_generation(GenerationParts.from_config(self._cfg, data), store)
        parts = RunParts.from_config(self._cfg, data).with_selection_view(self._cfg)
        method = method_from_config(self._cfg, parts.encoder, parts.scales)
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

        from lgclip.stages.context import RunContext
        from lgclip.stages.parts import RunParts
        from lgclip.training.from_config import training_from_config, training_inputs
        from lgclip.training.loop import run_training

        check_stored(self._cfg.paths.images, f"method={self._cfg.name} trains on them")
        context = RunContext.from_config(self._cfg)
        recipe = training_from_config(self._cfg)
        parts = RunParts.from_config(self._cfg, self._data)
        logger = build(self._cfg.logger, save_dir=output_folder()) if "_target_" in self._cfg.logger else False
        context = replace(context, logger=logger)
        context.check_models_of(parts)
        inputs = training_inputs(parts, context)
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
        from lgclip.stages.direct_encoding import direct_encoding
        from lgclip.stages.generate import generate_images

        parts, method = setup.parts, setup.method
        synthetic_images = None
        if method.needs_images:
            encoding = direct_encoding(context.image_format, parts.encoder, parts.scales)
            synthetic_images = generate_images(context, parts, encoding)
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
        open_root(self._cfg.paths.store)
        data = self._data

        from lgclip.classifier.from_config import classifier_from_config

        return classifier_from_config(self._cfg, data)

    def references(self) -> References:
        """Returns what `build_classifier` uses of the store; computes nothing.

        Raises:
            ValueError: If the parts cannot be built, or a class has no image in the store.
        """
        from lgclip.classifier.from_config import references_from_config

        return references_from_config(self._cfg, self._data)

    def similar_names(self, count: int) -> list[str]:
        """Names objects that look similar to the classes and belong to none, for images that a classifier rejects.

        The chat model of `llm` is asked; without one, words of the class names are recombined.

        Args:
            count: Number of names per class.

        Returns:
            Distinct names; fewer than asked, or none, where the model names no more or the names have one word.
        """
        open_root(self._cfg.paths.store)
        data = self._data

        from lgclip.stages.context import RunContext
        from lgclip.stages.parts import GenerationParts
        from lgclip.stages.similar_names import similar_names

        context_of = partial(RunContext.from_config, self._cfg)
        return similar_names(context_of, GenerationParts.from_config(self._cfg, data), count)

    # ------------------------------------------------------------------------------------------ how they are built

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
            print_loading("torch, Lightning and what the models need")

        from lgclip.evaluation.config_checks import check_method, warn_of_unused
        from lgclip.evaluation.evaluator import shifts_of
        from lgclip.methods.from_config import method_from_config
        from lgclip.runtime.devices import ConfigConsistencyCheck
        from lgclip.runtime.run_key import run_key
        from lgclip.stages.context import RunContext
        from lgclip.stages.parts import RunParts
        from lgclip.stages.pool import unlabeled_pool
        from lgclip.training.from_config import training_inputs
        from lgclip.training.task import TrainingConfig

        parts = RunParts.from_config(cfg, data).with_selection_view(cfg)
        shifted = {name: build(node, _convert_="all") for name, node in cfg.ood.items()}
        shifts = shifts_of(parts.data.evaluated, shifted)
        method = method_from_config(cfg, parts.encoder, parts.scales)
        pool = unlabeled_pool(method.align, parts.data)
        check_method(cfg, method)
        warn_of_unused(cfg, parts, method)
        context = RunContext.from_config(cfg, ConfigConsistencyCheck(run_key(cfg)))
        inputs = training_inputs(parts, context)
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
            context.check_models_of(parts)
        context.stages.check_before(parts.encoder.check_weights)
        pools = build(cfg.pools, _convert_="all") if cfg.pools else None
        return _Setup(parts, shifts, method, pool, pools, replace(inputs, encoder=parts.encoder), context)

    def _print_plan(self, *, evaluates: bool) -> None:
        plan = self.plan(evaluates=evaluates)

        from lgclip.reporting.plan_text import plan_text

        print(plan_text(plan))

    def _texts(self, setup: _Setup, context: RunContext) -> RunTexts | None:
        """Returns the text sides, and adds their baselines to the method; None without a text tower."""
        from lgclip.methods.zero_shot import ZeroShot
        from lgclip.stages.text import complete_texts

        parts, method = setup.parts, setup.method
        if not parts.encoder.has_text:
            return None
        compares = isinstance(method, ZeroShot) and method.compares_text
        has_prompts = bool(method.needs_images) and parts.diffuser.needs_prompts
        texts = complete_texts(context, parts, has_prompts=has_prompts, compares=compares)
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


def _required(synthetic_images: SyntheticImages | None) -> SyntheticImages:
    assert synthetic_images is not None, "a method that trains needs images"
    return synthetic_images
