"""Classifies images by stored prototypes: the classifier that `build` makes or a run leaves behind."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.classifier.inference import decoded_batches, encode_views, image_of, rejecter
from lgclip.classifier.loaded_encoder import LoadedEncoder, LoadedTowers
from lgclip.classifier.parts import Builder, ClassInfo, ImagePrediction, Negatives
from lgclip.classifier.sources import ImageSource, ListedImage, expand_sources
from lgclip.datasets.base import BadImageError, checked_names
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.methods.alignment import FittedAlignment
from lgclip.methods.calibration import Choice, FittedChoice, LeaveOneOut, Temperature, fit_choice
from lgclip.methods.forecast import Forecast, forecast
from lgclip.methods.left_out import References
from lgclip.methods.logits import from_unit
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.rejection import FittedRejection, Rejection, fit_rejection
from lgclip.methods.scoring import Scorer
from lgclip.methods.shots import Shots

if TYPE_CHECKING:
    import pandas as pd

    from lgclip.classifier.export import ExportSummary


@dataclass
class ImageClassifier:
    """Classifies images by prototypes in the feature space of one vision encoder; no text tower is loaded.

    Attributes:
        classes: The classes, in the order of their indices.
        encoder: Turns images into features.
        scales: Views of an image, and their fusion.
        configured: Scoring rule, selection and text weight, before calibration.
        calibration: Selects the free parameters; None leaves them unchanged.
        support: Features of all synthetic images; None if text alone represents the classes.
        text: Text prototypes; None where the classifier does not use them.
        fitted: The settings after calibration, with the temperature.
        settings: Resolved config groups that the classifier was built with, as plain values.
        origin: What it was built from, as plain values, for people.
        gives_logits: Whether the encoder is a trained classifier itself, whose output holds the logits.
        files: Files of a trained model, by their path in the saved folder; none for prototypes.
        strips: Image of each class's first synthetic images in a row; None where there is none.
        builder: Builds further classes with these settings; None where nothing can be built.
        image_ids: Content key of each synthetic image, in the order of `support`.
        dropped: Content keys of the synthetic images that were taken out; they never come back.
        shots: Real images of the classes; None if there are none.
        rejection: Which images are rejected as none of the classes; None if no image is.
        negatives: Images of similar things that are no class; None if there are none.
        rejector: The fitted threshold; None where nothing can be fitted.
        alignment: Aligns real images with the synthetic ones; None compares them as they are.
        edits: Changes since it was built, for people.
        exact: Whether a prediction on a CPU is the same to the last bit in a batch of any size, and that of an
            evaluation. False makes a single image several times as fast, and its scores may differ in the last bits.
        loaded: The encoder's weights, which stay in memory from the first image on, as long as the classifier does.
    """

    classes: tuple[ClassInfo, ...]
    encoder: Encoder
    scales: Scales
    configured: Choice
    calibration: LeaveOneOut | None
    support: SupportSet | None = field(repr=False)
    text: Float[Tensor, "c d"] | None = field(repr=False)
    fitted: FittedChoice = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    origin: Mapping[str, Any] = field(default_factory=dict, repr=False)
    gives_logits: bool = False
    files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    strips: Sequence[Image.Image | None] = field(default=(), repr=False)
    builder: Builder | None = field(default=None, repr=False)
    image_ids: tuple[str, ...] = field(default=(), repr=False)
    dropped: tuple[str, ...] = field(default=(), repr=False)
    shots: Shots | None = field(default=None, repr=False)
    rejection: Rejection | None = None
    negatives: Negatives | None = field(default=None, repr=False)
    rejector: FittedRejection | None = field(default=None, repr=False)
    alignment: FittedAlignment | None = field(default=None, repr=False)
    edits: tuple[str, ...] = field(default=(), repr=False)
    exact: bool = True
    loaded: LoadedEncoder = field(default_factory=LoadedEncoder, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.strips:
            self.strips = (None,) * len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the name of each class."""
        return tuple(info.name for info in self.classes)

    @property
    def classes_(self) -> np.ndarray:
        """Returns the class names, as scikit-learn's classifiers do."""
        return np.array(self.class_names)

    @property
    def choice(self) -> Choice:
        """Returns the scoring rule, the selection and the text weight that are used."""
        return self.fitted.choice

    @property
    def temperature(self) -> Temperature:
        """Returns the divisor that turns scores into log-probabilities."""
        return self.fitted.temperature

    def scorer(self) -> Scorer:
        """Returns the function that computes the class scores of fused unit features."""
        if self.gives_logits:
            return from_unit
        compared = self.references
        scorer = self.choice.fit(compared.images, compared.text)
        return scorer if self.alignment is None else self.alignment.scorer(scorer, self.support)

    @property
    def references(self) -> References:
        """Returns the references of images, aligned with real images where the classifier does that."""
        return self.aligned(References(self.support, self.text, self.shots))

    @property
    def negative_references(self) -> References | None:
        """Returns the images and sentences of objects of no class, aligned as those of the classes."""
        return None if self.negatives is None else self.aligned(self.negatives.references)

    def aligned(self, references: References) -> References:
        """Returns synthetic images, sentences and shots in the space where real images are compared with them."""
        if self.alignment is None:
            return references
        return self.alignment.references(references, References(self.support, self.text))

    def aligned_real(self, features: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Returns unit features of real images in the space where they are compared."""
        return features if self.alignment is None else self.alignment.real(features, self.support)

    def forecast(self) -> Forecast | None:
        """Predicts the accuracy from the synthetic images; None where no image of a class can be left out.

        It holds for images like the synthetic ones: it does not know how photographs differ from them.
        """
        if self.gives_logits:
            return None
        return forecast(self.choice, self.references)

    # ------------------------------------------------------------------------------------------------ classification

    def classify(
        self, sources: ImageSource | Iterable[ImageSource], *, top: int = 5, batch_size: int = 64
    ) -> Iterator[ImagePrediction]:
        """Yields the prediction for each image, in order; an unreadable image gives a row with its error.

        Images are read when their turn comes, so that memory does not grow with their number.

        Args:
            sources: Files, shards (tar or parquet files of images), folders (searched with their sub-folders), glob
                patterns, URLs of shards, PIL images or arrays (h, w, 3) of bytes; one or several.
            top: Number of classes in `ImagePrediction.top`.
            batch_size: Number of images that are decoded and encoded at once.

        Raises:
            ValueError: If a source does not exist, a number is below 1, or there are not two classes.
        """
        if top < 1 or batch_size < 1:
            raise ValueError(f"top={top}, batch_size={batch_size}: both must be at least 1")
        if len(self.classes) < 2:
            raise ValueError(f"a classifier needs two classes to choose from, this one has {len(self.classes)}")
        # Checked at once and not with the first image: a generator would hide a wrong path until it is used.
        items = expand_sources(sources)
        return self.classify_listed(items, top=top, batch_size=batch_size)

    def load_encoder(self) -> LoadedTowers:
        """Loads the encoder's weights now, and not with the first image, such as when a server starts.

        They stay in memory as long as the classifier does.

        Returns:
            The encoder in memory, on a GPU where there is one.

        Raises:
            ValueError: If its weights cannot be had.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return self.loaded.load(self.encoder, device)

    def classify_frame(self, sources: ImageSource | Iterable[ImageSource], *, top: int = 1) -> "pd.DataFrame":
        """Returns the predictions as a pandas frame, one row per image: the columns of `lgclip classify`.

        Raises:
            ValueError: As in `classify`, or if pandas is not installed.
        """
        from lgclip.classifier.tables import predictions_frame

        return predictions_frame(self.classify(sources, top=top), top)

    def predict(self, sources: ImageSource | Iterable[ImageSource]) -> np.ndarray:
        """Returns the class name of each image.

        Raises:
            ValueError: If an image cannot be read: a row without a class would shift all others.
        """
        return np.array([_required(prediction).label for prediction in self.classify(sources, top=1)])

    def predict_proba(self, sources: ImageSource | Iterable[ImageSource]) -> Float[np.ndarray, "n c"]:
        """Returns the probability of each class, in the order of `classes_`.

        Raises:
            ValueError: As in `predict`.
        """
        place = {name: index for index, name in enumerate(self.class_names)}
        rows = []
        for prediction in self.classify(sources, top=len(self.class_names)):
            row = np.zeros(len(self.class_names))
            for name, probability in _required(prediction).top:
                row[place[name]] = probability
            rows.append(row)
        return np.stack(rows) if rows else np.zeros((0, len(self.class_names)))

    @torch.inference_mode()
    def classify_listed(
        self, items: Iterator[tuple[str, ListedImage]], *, top: int = 5, batch_size: int = 64
    ) -> Iterator[ImagePrediction]:
        """Yields the prediction for each image in order, as `classify`, of images that are listed already.

        Args:
            items: Name and file, pixels or bytes of each image; read two batches ahead.
            top: Number of classes in `ImagePrediction.top`.
            batch_size: Number of images that are decoded and encoded at once.
        """
        in_memory = self.load_encoder()
        views = in_memory.views(self.scales)
        scorer = self.scorer()
        reject = rejecter(self)

        def load(item: tuple[str, ListedImage]) -> Tensor | str:
            try:
                image, image_id = image_of(item[1])
            except (BadImageError, ValueError) as error:
                return getattr(error, "reason", str(error))
            return views(image, image_id)

        for paths, loaded in decoded_batches(items, load, batch_size):
            pixels = [item for item in loaded if isinstance(item, Tensor)]
            rows: Iterator[tuple[Tensor, bool | None]] = iter(())
            if pixels:
                encoded = encode_views(in_memory.towers, torch.stack(pixels), in_memory.device, exact=self.exact)
                features = self.scales.fuse(encoded)
                scores = scorer(features)
                probs = (scores / self.temperature.value).softmax(dim=1)
                rows = zip(probs, reject(features, scores), strict=True)
            for path, item in zip(paths, loaded, strict=True):
                if isinstance(item, str):
                    yield ImagePrediction(path, None, None, None, None, error=item)
                else:
                    yield self._prediction(path, *next(rows), top)

    def _prediction(self, path: str, probs: Float[Tensor, " c"], rejected: bool | None, top: int) -> ImagePrediction:
        # A stable sort, so that of equal scores the first class wins, as in an evaluation.
        values, places = probs.sort(descending=True, stable=True)
        count = max(top, 2)
        names = [self.classes[place].name for place in places[:count].tolist()]
        ranked = tuple(zip(names, values[:count].tolist(), strict=True))
        (label, score), (runner_up, second) = ranked[:2]
        return ImagePrediction(path, label, score, runner_up, score - second, ranked[:top], rejected=rejected)

    # --------------------------------------------------------------------------------------------------- its classes

    def add(self, names: str | Sequence[str] | Mapping[str, str]) -> None:
        """Adds classes: generates their prompts and images, as the others' were, and nothing of the others.

        Args:
            names: A name, several, or a mapping from names to descriptions.

        Raises:
            ValueError: If a name is empty or exists already, or the settings are unknown.
        """
        from lgclip.classifier.editing import add_classes

        if isinstance(names, str):
            names = [names]
        add_classes(self, dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, ""))

    def remove(self, names: str | Sequence[str]) -> None:
        """Removes classes.

        Raises:
            ValueError: If a class does not exist, or fewer than two would remain.
        """
        from lgclip.classifier.editing import remove_classes

        remove_classes(self, [names] if isinstance(names, str) else names)

    def rename(self, old: str, new: str) -> None:
        """Gives a class another name in predictions; its prompts and images stay those of the old name.

        Raises:
            ValueError: If the class does not exist, or the new name is empty or belongs to another class.
        """
        index = self.index_of(old)
        names = list(self.class_names)
        names[index] = new
        (*_,) = checked_names(names)
        info = self.classes[index]
        renamed = info._replace(name=checked_names([new])[0], prompted_as=info.prompted_as or info.name)
        self.classes = (*self.classes[:index], renamed, *self.classes[index + 1 :])

    # -------------------------------------------------------------------------------------------------- its prototypes

    def drop(self, images: str | Sequence[str]) -> None:
        """Removes synthetic images permanently: no later change brings them back.

        Args:
            images: Their ids, or the first letters of them; `image_ids` has all.

        Raises:
            ValueError: If an id fits no image or several, or a class would have none left.
        """
        from lgclip.classifier.editing import drop_images

        drop_images(self, [images] if isinstance(images, str) else images)

    def add_shots(self, images: Mapping[str, ImageSource | Iterable[ImageSource]]) -> None:
        """Mixes a few real images of some classes into their prototypes; their weight is chosen by leaving each out.

        Args:
            images: Sources of images, by class name.

        Raises:
            ValueError: If a class does not exist, an image cannot be read or is there already, or the classifier
                selects images (`selection.keep`).
        """
        from lgclip.classifier.editing import add_shots

        add_shots(self, images)

    def improve(self, rounds: int = 1) -> list[str]:
        """Generates new prompts and images for confusable classes, and keeps those that help on left-out images.

        Args:
            rounds: Maximum number of rounds; it ends earlier if a round keeps nothing.

        Returns:
            What was tried for each class, and whether it was kept.

        Raises:
            ValueError: If the settings are unknown, or the classifier was trained.
        """
        from lgclip.classifier.improvement import improve

        return improve(self, rounds)

    def reject_unknown(self, rejection: Rejection | None) -> None:
        """Sets which images are rejected as none of the classes; generates negatives if the settings need them.

        Args:
            rejection: The settings; None rejects nothing.

        Raises:
            ValueError: If the settings do not fit.
        """
        from lgclip.classifier.editing import set_rejection

        set_rejection(self, rejection)

    def check_prototypes(self) -> None:
        """Raises an error if a model was trained for these classes, so that they cannot be changed.

        Raises:
            ValueError: If so.
        """
        if self.is_trained:
            raise ValueError("this classifier was trained for its classes; train again with another list")

    @property
    def is_trained(self) -> bool:
        """Returns whether a model was trained for these classes: a student or tuned prompts."""
        return bool(self.origin.get("trained"))

    def index_of(self, name: str) -> int:
        """Returns the index of a class.

        Raises:
            ValueError: If it does not exist.
        """
        if name not in self.class_names:
            raise ValueError(f"no class {name!r}; the classes are {_listed(self.class_names)}")
        return self.class_names.index(name)

    def fit(self) -> None:
        """Calibrates again and fits temperature and threshold, after classes or images have changed."""
        self.fitted = fit_choice(self.configured, self.calibration, self.references)
        self.rejector = None
        if self.rejection is not None:
            self.rejector = fit_rejection(
                self.rejection, self.choice, self.temperature.value, self.references, self.negative_references
            )

    # ------------------------------------------------------------------------------------------------------- storage

    def save(self, path: str | Path, *, with_encoder: bool = False) -> Path:
        """Saves the classifier: to a folder, or to a single file if the name ends with `.zip`.

        Args:
            path: The folder or file; a classifier that is there is replaced.
            with_encoder: Whether to save the weights of the vision tower too, for machines without network.

        Raises:
            WriteError: If the system refuses it.
            ValueError: If something else is there, or the encoder cannot be saved.
        """
        from lgclip.classifier.files import save_classifier

        return save_classifier(self, Path(path).expanduser(), with_encoder=with_encoder)

    def export(
        self, path: str | Path, *, format: str | None = None, int8: bool = False, resize: bool = False
    ) -> "ExportSummary":
        """Exports the classifier to one file for other runtimes: from pixels to scores, without a text tower.

        Args:
            path: The file.
            format: `onnx`, `pt2`, `openvino` or `safetensors`; None takes that of the file's name.
            int8: Whether to quantize the weights to 8 bits, for `onnx` alone.
            resize: Whether to put resize and crop into the graph.

        Raises:
            ValueError: If an option does not fit, a package is missing, or the file would give other scores.
            WriteError: If the system refuses it.
        """
        from lgclip.classifier.export import export_classifier
        from lgclip.classifier.places import export_format

        place = Path(path).expanduser()
        return export_classifier(self, place, format=format or export_format(place), int8=int8, resize=resize)


def _listed(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more


def _required(prediction: ImagePrediction) -> ImagePrediction:
    if prediction.error is not None:
        raise ValueError(f"{prediction.path} cannot be read as an image ({prediction.error}); leave it out")
    return prediction
