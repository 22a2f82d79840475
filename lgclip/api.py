"""Offers what a user's program needs: builds a classifier from class names, loads and evaluates one."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lgclip.datasets.names import ClassNames, ClassNameSource, read_class_names
from lgclip.datasets.splits import DatasetSplits
from lgclip.experiment import Experiment
from lgclip.runtime.config_aliases import register_second_encoders
from lgclip.runtime.config_errors import describe_config_error
from lgclip.runtime.instantiate import build as instantiate
from lgclip.runtime.scripts import script_place
from lgclip.runtime.secrets import guard_environment

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.reporting.classifier_evaluation import ClassifierEvaluation

_RUNTIME = ("paths", "trainer", "workers", "on_bad_image")
"""Values that belong to this machine and not to a classifier."""
_TEXT_FILE = "text.file="


def build(
    names: ClassNameSource | Iterable[str],
    *,
    encoder: str = "tiny",
    diffuser: str = "tiny",
    llm: str = "tiny",
    overrides: Sequence[str] = (),
) -> "ImageClassifier":
    """Builds an image classifier from class names; needs no image.

    Prompts, images and features come from the store, and are made now if they are missing: an interrupted build goes on
    where it stopped.

    Args:
        names: The names; a mapping from names to what they look like; or a file (see `ClassNames`).
        encoder: Preset of the encoder, `conf/encoder/NAME.yaml`.
        diffuser: Preset of the image generator, `conf/diffuser/NAME.yaml`.
        llm: Preset of the prompt generator, `conf/llm/NAME.yaml`.
        overrides: Further overrides as for evaluate.py, such as `prompts_per_class=20`.

    Returns:
        The classifier.

    Raises:
        ValueError: If there are fewer than two names, one is empty or occurs twice, or a value is unknown.
    """
    if not isinstance(names, str | Path | Mapping | Sequence):
        names = list(names)
    # Before anything is composed or imported: a mistake in the names is the most frequent one.
    ClassNames(names)
    cfg = _composed([f"llm={llm}", f"diffuser={diffuser}", f"encoder={encoder}", *overrides])
    data = ClassNames(names, context=cfg.dataset.context, templates=cfg.dataset.templates)
    rejection = instantiate(cfg.rejection) if "_target_" in cfg.rejection else None
    if rejection is not None and rejection.names is not None:
        read_class_names(rejection.names, "rejection.names")  # a wrong file is an error before anything is generated

    from lgclip.classifier.settings import check_negatives

    check_negatives(rejection, cfg.get("text") or {}, uses_text=cfg.method.get("text_weight", 0) > 0)
    classifier = Experiment(cfg, DatasetSplits(lambda: data)).build_classifier()
    classifier.builder = _Builder(overrides, cfg)
    classifier.reject_unknown(rejection)
    return classifier


def load(path: str | Path, *, overrides: Sequence[str] = ()) -> "ImageClassifier":
    """Loads a classifier from its folder or zip file, the model hub, or the folder of a finished run.

    Args:
        path: The folder or file, or `hf://USER/NAME`.
        overrides: Overrides for classes that are added later, such as `paths.store=DIR`, or `text.file=FILE` with the
            descriptors of these classes where the classifier's came from a file.

    Raises:
        ValueError: If there is no classifier, or something is damaged or gone.
    """
    from lgclip.classifier.hub import PREFIX, download_classifier
    from lgclip.classifier.loading import load_classifier
    from lgclip.reporting.run_folder import RESULT

    guard_environment()
    address = str(path)
    place = download_classifier(address) if address.startswith(PREFIX) else Path(path).expanduser()
    if (place / RESULT).is_file():
        # Imported for a run alone: restoring one needs all of the pipeline.
        from lgclip.reporting.run_classifier import classifier_of

        classifier = classifier_of(place)
    else:
        classifier = load_classifier(place)
    classifier.builder = _Builder(overrides)
    return classifier


def experiments_of(classifier: "ImageClassifier", overrides: Sequence[str] = ()) -> list[Experiment]:
    """Returns the experiments that build a classifier again: of its classes, and of similar objects that it rejects.

    Args:
        classifier: The classifier.
        overrides: Overrides of the values that belong to the machine, such as `paths.store=DIR`.
    """
    builder = _Builder(overrides)
    names = {info.prompted_as or info.name: info.description for info in classifier.classes}
    experiments = [builder.experiment(names, classifier.settings)]
    rejection = classifier.rejection
    # Things from a file have descriptions, which a classifier does not keep.
    if classifier.negatives is not None and rejection is not None and rejection.names is None:
        settings = {**classifier.settings, "prompts_per_class": rejection.images_per_name, "images_per_prompt": 1}
        experiments.append(builder.experiment(dict.fromkeys(classifier.negatives.names, ""), settings))
    return experiments


def evaluate(
    classifier: "ImageClassifier", root: str | Path, *, names: str | None = None, skip_unreadable: bool = False
) -> "ClassifierEvaluation":
    """Evaluates a classifier on labelled images, one folder per class, with the statistics of evaluate.py.

    Args:
        classifier: The classifier.
        root: The folder; the folders in it are named as the classes.
        names: File with the class name of each folder; None uses the folders' names.
        skip_unreadable: Whether to leave out images that cannot be read, instead of an error.

    Raises:
        ValueError: If the folder has a class that the classifier lacks, or an image cannot be read.
    """
    from lgclip.reporting.classifier_evaluation import evaluate_classifier

    return evaluate_classifier(classifier, root, names=names, skip_unreadable=skip_unreadable)


class _Builder:
    """Builds further classes with the settings of a classifier, in the store and on the devices of this machine.

    Args:
        overrides: Overrides of the values that belong to the machine, such as `paths.store=DIR`.
        cfg: A composed config that has these values; None composes one.
    """

    def __init__(self, overrides: Sequence[str], cfg: DictConfig | None = None) -> None:
        # What is composed is of this machine; the text side is the classifier's, which a file adds to.
        self._overrides = [override for override in overrides if not _names_text_file(override)]
        self._text_files = [override for override in overrides if cfg is None and _names_text_file(override)]
        self._cfg = cfg

    def build(self, names: Mapping[str, str], settings: Mapping[str, Any]) -> "ImageClassifier":
        return self.experiment(names, settings).build_classifier()

    def similar_names(self, names: Mapping[str, str], settings: Mapping[str, Any], count: int) -> list[str]:
        return self.experiment(names, settings).similar_names(count)

    def experiment(self, names: Mapping[str, str], settings: Mapping[str, Any]) -> Experiment:
        from lgclip.classifier.settings import config_from

        composed = self._cfg or _composed(self._overrides)
        cfg = config_from({**settings, **self._text(settings)}, _composed([]))
        for key in _RUNTIME:
            if key in composed:
                cfg[key] = composed[key]
        # A single class is no classifier, but it joins others.
        data = ClassNames(names, context=cfg.dataset.context, templates=cfg.dataset.templates, least=1)
        return Experiment(cfg, DatasetSplits(lambda: data))

    def _text(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of the text side with the file of further descriptors, if one was named.

        Raises:
            ValueError: If the classifier has no descriptors from a file.
        """
        if not self._text_files:
            return {}
        override = self._text_files[-1]
        text = settings.get("text") or {}
        if not text.get("stored"):
            raise ValueError(f"{override}: the sentences of this classifier came from no file; leave it out")
        return {"text": {**text, "file": _value_of(override)}}


def _names_text_file(override: str) -> bool:
    return override.lstrip("+").startswith(_TEXT_FILE)


def _value_of(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).value()


def _composed(overrides: Sequence[str]) -> DictConfig:
    """Composes the config of `lgclip build`.

    Raises:
        ValueError: If an override is unknown or not understood.
    """
    guard_environment()
    register_second_encoders()
    for override in overrides:
        if override.lstrip("+~").startswith(("dataset=", "dataset.names=", "ood")):
            raise ValueError(f"{override}: a classifier is built from its names alone; evaluate.py takes a data set")
    # A program of the user's own may be a Hydra application itself: its state is put back.
    outer = GlobalHydra.instance().hydra
    # One device, since Lightning would start this program again for the others.
    fixed = ["dataset=names", "dataset.names=[]", "trainer.devices=1", "logger=none"]
    try:
        with initialize_config_dir(str(script_place("conf")), version_base="1.3"):
            return compose("build", [*fixed, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(describe_config_error(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer
